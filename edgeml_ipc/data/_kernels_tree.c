/* SumTree: the binding of eipc_tree. Its caller serialises all calls: gather.py's sibling priority.py does, with a lock. */
#include "_kernels_binding.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { RELEASE_GIL_ROWS = 64 }; /* a smaller batch is over before another thread could run */
#define MAX_CAPACITY ((unsigned long long)1 << 40)
#define MAX_WEIGHT 1e280 /* times as many rows as there can be, this is still finite */

typedef struct {
    PyObject_HEAD
    eipc_tree tree;
} SumTree;

static PyObject *tree_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"capacity", NULL};
    long long capacity;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "L", names, &capacity)) return NULL;
    if (capacity < 1 || (unsigned long long)capacity > MAX_CAPACITY)
        return PyErr_Format(PyExc_ValueError, "capacity must be from 1 to %llu rows, got %lld", MAX_CAPACITY, capacity);
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    SumTree *self = (SumTree *)allocate(type, 0);
    if (!self) return NULL;
    if (eipc_tree_init(&self->tree, (uint64_t)capacity) == 0) return (PyObject *)self;
    Py_DECREF((PyObject *)self);
    return PyErr_NoMemory();
}

static void tree_dealloc(SumTree *self) {
    eipc_tree_free(&self->tree);
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static int64_t *rows_of(const SumTree *self, PyObject *object, size_t *count) {
    return eipc_copied_rows(object, "rows", 0, (int64_t)self->tree.capacity, count);
}

static bool weight_is_good(double weight) { return weight >= 0 && weight <= MAX_WEIGHT; } /* false for NaN */

static PyObject *raise_weight(size_t i, double weight) {
    PyObject *value = PyFloat_FromDouble(weight);
    if (value) PyErr_Format(PyExc_ValueError, "weights[%zu] is %R; it must be from 0 to 1e280", i, value);
    Py_XDECREF(value);
    return NULL;
}

enum { ANY = -1 };

/* Get an array whose format is one of the letters `formats`, of items of `size` bytes; with `count` of them, unless that is ANY. */
static int get_array(PyObject *object, const char *name, const char *formats, Py_ssize_t size, Py_ssize_t count, bool writable,
                     Py_buffer *b) {
    if (PyObject_GetBuffer(object, b, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0)) < 0) return -1;
    bool right = b->itemsize == size && b->format && b->format[0] && !b->format[1] && strchr(formats, b->format[0]);
    if (right && (count == ANY || b->len / size == count)) return 0;
    PyErr_Format(right ? PyExc_ValueError : PyExc_TypeError,
                 "%s must be a contiguous array of format '%s', of %zd items (-1: any number), got %zd bytes of format '%s'", name, formats,
                 count, b->len, b->format ? b->format : "");
    PyBuffer_Release(b);
    return -1;
}

static int get_doubles(PyObject *object, const char *name, Py_ssize_t count, bool writable, Py_buffer *b) {
    return get_array(object, name, "d", 8, count, writable, b);
}

static int get_ints(PyObject *object, const char *name, Py_ssize_t count, bool writable, Py_buffer *b) {
    return get_array(object, name, "lq", 8, count, writable, b);
}

static PyObject *tree_set(SumTree *self, PyObject *args) {
    PyObject *rows_object, *weights_object;
    if (!PyArg_ParseTuple(args, "OO", &rows_object, &weights_object)) return NULL;
    size_t count, good = 0;
    int64_t *rows = rows_of(self, rows_object, &count);
    if (!rows) return NULL;
    Py_buffer given;
    if (get_doubles(weights_object, "weights", (Py_ssize_t)count, false, &given) < 0) {
        free(rows);
        return NULL;
    }
    double *weights = malloc(count * sizeof *weights + 8);
    if (weights) memcpy(weights, given.buf, count * sizeof *weights);
    PyBuffer_Release(&given);
    while (weights && good < count && weight_is_good(weights[good])) good++;
    if (!weights) {
        PyErr_NoMemory();
    } else if (good < count) {
        raise_weight(good, weights[good]);
    } else if (count < RELEASE_GIL_ROWS) {
        eipc_tree_set(&self->tree, rows, weights, count);
    } else {
        Py_BEGIN_ALLOW_THREADS
        eipc_tree_set(&self->tree, rows, weights, count);
        Py_END_ALLOW_THREADS
    }
    free(weights);
    free(rows);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

/* Turn handles into the rows that are still of the generation in the handle, and errors into weights; both in place. Returns how
 * many those are; `*bad` is the first error that no weight can be made of, or `count`. */
static size_t hold(size_t count, int64_t *handles, double *errors, const int64_t *stamps, unsigned bits, uint64_t capacity,
                   double epsilon, double alpha, size_t *bad) {
    size_t held = 0;
    for (size_t i = 0; i < count; i++) __builtin_prefetch(stamps + (uint64_t)handles[i] % capacity);
    for (*bad = 0; *bad < count; (*bad)++) {
        uint64_t generation = (uint64_t)handles[*bad] / capacity, row = (uint64_t)handles[*bad] - generation * capacity;
        double weight = pow(fabs(errors[*bad]) + epsilon, alpha);
        if (!isfinite(errors[*bad]) || !weight_is_good(weight)) return 0;
        if (stamps[row] < 0 || (uint64_t)stamps[row] >> bits != generation) continue;
        handles[held] = (int64_t)row;
        errors[held++] = weight;
    }
    return held;
}

static PyObject *tree_update(SumTree *self, PyObject *args) {
    PyObject *handles_object, *errors_object, *stamps_object;
    unsigned bits;
    double epsilon, alpha, greatest = 0;
    if (!PyArg_ParseTuple(args, "OOOIdd", &handles_object, &errors_object, &stamps_object, &bits, &epsilon, &alpha)) return NULL;
    size_t count, held = 0, bad = 0;
    int64_t *handles = eipc_copied_rows(handles_object, "indices", 0, INT64_MAX, &count);
    if (!handles) return NULL;
    double *errors = malloc(count * sizeof *errors + 8);
    Py_buffer given, stamps;
    if (!errors) PyErr_NoMemory();
    if (!errors || get_doubles(errors_object, "errors", (Py_ssize_t)count, false, &given) < 0) goto out;
    memcpy(errors, given.buf, count * sizeof *errors);
    PyBuffer_Release(&given);
    if (PyObject_GetBuffer(stamps_object, &stamps, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) goto out;
    if (stamps.itemsize != 8 || (uint64_t)stamps.len / 8 != self->tree.capacity || bits > 62) {
        PyErr_Format(PyExc_ValueError, "stamps must be %llu int64, their bits at most 62", (unsigned long long)self->tree.capacity);
    } else {
        Py_BEGIN_ALLOW_THREADS
        held = hold(count, handles, errors, stamps.buf, bits, self->tree.capacity, epsilon, alpha, &bad);
        if (bad == count) eipc_tree_set(&self->tree, handles, errors, held);
        for (size_t i = 0; i < held; i++) greatest = errors[i] > greatest ? errors[i] : greatest;
        Py_END_ALLOW_THREADS
        if (bad < count) {
            PyObject *value = PyFloat_FromDouble(errors[bad]);
            if (value) PyErr_Format(PyExc_ValueError, "errors[%zu] is %R; it must be finite", bad, value);
            Py_XDECREF(value);
        }
    }
    PyBuffer_Release(&stamps);
out:
    free(errors);
    free(handles);
    return PyErr_Occurred() ? NULL : Py_BuildValue("nd", (Py_ssize_t)held, greatest);
}

static PyObject *tree_fill(SumTree *self, PyObject *args) {
    long long begin, end;
    double weight;
    if (!PyArg_ParseTuple(args, "LLd", &begin, &end, &weight)) return NULL;
    if (begin < 0 || end < begin || (unsigned long long)end > self->tree.capacity)
        return PyErr_Format(PyExc_IndexError, "rows %lld to %lld; the tree has rows 0 to %llu", begin, end,
                            (unsigned long long)self->tree.capacity);
    if (!weight_is_good(weight)) return raise_weight(0, weight);
    Py_BEGIN_ALLOW_THREADS
    eipc_tree_fill(&self->tree, (uint64_t)begin, (uint64_t)end, weight);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *tree_get(SumTree *self, PyObject *args) {
    PyObject *rows_object, *out_object;
    if (!PyArg_ParseTuple(args, "OO", &rows_object, &out_object)) return NULL;
    size_t count;
    int64_t *rows = rows_of(self, rows_object, &count);
    if (!rows) return NULL;
    Py_buffer out;
    if (get_doubles(out_object, "out", (Py_ssize_t)count, true, &out) == 0) {
        for (size_t i = 0; i < count; i++) ((double *)out.buf)[i] = self->tree.sum[0][rows[i]];
        PyBuffer_Release(&out);
    }
    free(rows);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

static PyObject *tree_find(SumTree *self, PyObject *args) {
    PyObject *parts_object, *rows_object, *weights_object;
    int stratified;
    if (!PyArg_ParseTuple(args, "OpOO", &parts_object, &stratified, &rows_object, &weights_object)) return NULL;
    Py_buffer parts, rows, weights;
    double total = eipc_tree_total(&self->tree);
    if (get_doubles(parts_object, "parts", ANY, false, &parts) < 0) return NULL;
    size_t count = (size_t)parts.len / 8;
    if (get_ints(rows_object, "rows", (Py_ssize_t)count, true, &rows) == 0) {
        if (get_doubles(weights_object, "weights", (Py_ssize_t)count, true, &weights) == 0) {
            int64_t *found = malloc(count * sizeof *found + 8); /* no other thread may change a row on its way down the tree */
            if (!found) PyErr_NoMemory();
            else if (total > 0) {
                Py_BEGIN_ALLOW_THREADS
                const double *part = parts.buf;
                double *targets = weights.buf;
                for (size_t i = 0; i < count; i++)
                    targets[i] = stratified ? (part[i] + (double)i) * (total / (double)count) : part[i] * total;
                eipc_tree_find(&self->tree, targets, count, found, targets);
                memcpy(rows.buf, found, count * sizeof *found);
                Py_END_ALLOW_THREADS
            }
            free(found);
            PyBuffer_Release(&weights);
        }
        PyBuffer_Release(&rows);
    }
    PyBuffer_Release(&parts);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(total > 0);
}

/* (least / weight)^beta, at most 1: in single precision, which is what is asked for, unless the ratio is too small for it. */
static float importance(double least, double weight, double beta) {
    double ratio = least / weight;
    if (!(ratio < 1)) return 1;
    return ratio > 1e-30 ? powf((float)ratio, (float)beta) : (float)pow(ratio, beta);
}

static PyObject *tree_hand_out(SumTree *self, PyObject *args) {
    PyObject *objects[5];
    unsigned bits;
    double beta;
    if (!PyArg_ParseTuple(args, "OOOIdOO", &objects[0], &objects[1], &objects[2], &bits, &beta, &objects[3], &objects[4])) return NULL;
    Py_buffer rows, stamps, weights, handles, out;
    if (get_ints(objects[0], "rows", ANY, false, &rows) < 0) return NULL;
    Py_ssize_t count = rows.len / 8;
    if (get_ints(objects[1], "stamps", count, false, &stamps) == 0) {
        if (get_doubles(objects[2], "weights", count, false, &weights) == 0) {
            if (get_ints(objects[3], "handles", count, true, &handles) == 0) {
                if (get_array(objects[4], "importance", "f", 4, count, true, &out) == 0) {
                    double least = eipc_tree_least(&self->tree);
                    for (Py_ssize_t i = 0; i < count; i++) {
                        uint64_t generation = ((uint64_t *)stamps.buf)[i] >> (bits & 63);
                        ((uint64_t *)handles.buf)[i] = generation * self->tree.capacity + ((uint64_t *)rows.buf)[i];
                        ((float *)out.buf)[i] = importance(least, ((double *)weights.buf)[i], beta);
                    }
                    PyBuffer_Release(&out);
                }
                PyBuffer_Release(&handles);
            }
            PyBuffer_Release(&weights);
        }
        PyBuffer_Release(&stamps);
    }
    PyBuffer_Release(&rows);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

static PyObject *tree_total(SumTree *self, void *Py_UNUSED(closure)) { return PyFloat_FromDouble(eipc_tree_total(&self->tree)); }

static PyObject *tree_least(SumTree *self, void *Py_UNUSED(closure)) { return PyFloat_FromDouble(eipc_tree_least(&self->tree)); }

static PyMethodDef tree_methods[] = {
    {"set", (PyCFunction)tree_set, METH_VARARGS, "Set the weights of rows."},
    {"update", (PyCFunction)tree_update, METH_VARARGS, "Set the weights that follow from errors, of rows that are still held."},
    {"fill", (PyCFunction)tree_fill, METH_VARARGS, "Set the weights of the rows begin..end to one value."},
    {"get", (PyCFunction)tree_get, METH_VARARGS, "Write the weights of rows into `out`."},
    {"find", (PyCFunction)tree_find, METH_VARARGS, "Write the rows in which parts of the total lie, and their weights."},
    {"hand_out", (PyCFunction)tree_hand_out, METH_VARARGS, "Write the handles of rows, and their importance."},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef tree_getset[] = {
    {"total", (getter)tree_total, NULL, "The sum of all weights.", NULL},
    {"least", (getter)tree_least, NULL, "The least positive weight, or infinity.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot tree_slots[] = {
    {Py_tp_doc, "SumTree(capacity): weights of rows, and their sums."},
    {Py_tp_new, tree_new},
    {Py_tp_dealloc, tree_dealloc},
    {Py_tp_methods, tree_methods},
    {Py_tp_getset, tree_getset},
    {0, NULL},
};
static PyType_Spec tree_spec = {"edgeml_ipc.data._rows.SumTree", sizeof(SumTree), 0, Py_TPFLAGS_DEFAULT, tree_slots};

int eipc_add_tree_type(PyObject *module) {
    static PyTypeObject *type;
    return eipc_add_type(module, &tree_spec, &type);
}
