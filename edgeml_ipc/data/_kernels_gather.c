/* Gather: the binding of eipc_gather. */
#include "_kernels_binding.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_COLUMNS = 1024,
    RELEASE_GIL_FROM = 32768 /* bytes; what is less is over before another thread could run */
};
#define MAX_BYTES ((uint64_t)1 << 46)

/* ---- eipc_gatherer -------------------------------------------------------------------------------------------------------- */

static void release_columns(eipc_gatherer *self) {
    for (size_t i = 0; i < self->count; i++) PyBuffer_Release(&self->columns[i].buffer);
    self->count = 0;
}

static void gather_dealloc(eipc_gatherer *self) {
    release_columns(self);
    free(self->columns);
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* A column: bytes as (rows, row_bytes), each row in one piece. */
static int take_column(eipc_column *column, PyObject *object, size_t number) {
    if (PyObject_GetBuffer(object, &column->buffer, PyBUF_STRIDES | PyBUF_FORMAT) < 0) return -1;
    Py_buffer *b = &column->buffer;
    if (b->ndim == 2 && b->itemsize == 1 && (b->shape[1] <= 1 || b->strides[1] == 1) &&
        (b->shape[0] <= 1 || b->strides[0] >= b->shape[1]))
        return 0;
    PyErr_Format(PyExc_ValueError, "column %zu must be bytes of shape (rows, row_bytes), each row in one piece, rows ascending", number);
    PyBuffer_Release(b);
    return -1;
}

static PyObject *gather_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"columns", "which", "threads", NULL};
    PyObject *columns, *which;
    unsigned threads;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!I", names, &PyTuple_Type, &columns, &PyTuple_Type, &which, &threads)) return NULL;
    Py_ssize_t count = PyTuple_Size(columns);
    if (count < 1 || count > MAX_COLUMNS || PyTuple_Size(which) != count)
        return PyErr_Format(PyExc_ValueError, "columns and which must be of one length from 1 to %d, got %zd and %zd", MAX_COLUMNS,
                            count, PyTuple_Size(which));
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    eipc_gatherer *self = (eipc_gatherer *)allocate(type, 0);
    if (!self) return NULL;
    self->threads = threads;
    self->columns = calloc((size_t)count, sizeof *self->columns);
    if (!self->columns) {
        Py_DECREF((PyObject *)self);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        size_t set = PyLong_AsSize_t(PyTuple_GetItem(which, i));
        if (set == (size_t)-1 && PyErr_Occurred()) break;
        if (set >= (size_t)count) {
            PyErr_Format(PyExc_ValueError, "which[%zd] is %zu; with %zd columns it must be less than that", i, set, count);
            break;
        }
        if (take_column(&self->columns[i], PyTuple_GetItem(columns, i), (size_t)i) < 0) break;
        self->columns[i].which = set;
        if (set >= self->sets) self->sets = set + 1;
        self->count++;
    }
    if (!PyErr_Occurred()) return (PyObject *)self;
    Py_DECREF((PyObject *)self);
    return NULL;
}

static void free_sets(eipc_row_set *sets, size_t count) {
    for (size_t s = 0; sets && s < count; s++) {
        free(sets[s].rows);
        free(sets[s].at);
    }
    free(sets);
}

/* How many rows the columns have that a set indexes: the fewest of them. */
static int64_t rows_of_set(const eipc_gatherer *self, size_t set) {
    int64_t rows = INT64_MAX;
    for (size_t i = 0; i < self->count; i++)
        if (self->columns[i].which == set && self->columns[i].buffer.shape[0] < rows) rows = self->columns[i].buffer.shape[0];
    return rows;
}

/* `places`: NULL, or for each set how many rows the block has place for, of which `at` names some. */
static eipc_row_set *take_sets(const eipc_gatherer *self, PyObject *rows, PyObject *at, const size_t *places) {
    eipc_row_set *sets = calloc(self->sets, sizeof *sets);
    if (!sets) PyErr_NoMemory();
    for (size_t s = 0; sets && s < self->sets; s++) {
        size_t places_named = 0;
        sets[s].rows = eipc_copied_rows(PyTuple_GetItem(rows, (Py_ssize_t)s), "rows", -1, rows_of_set(self, s), &sets[s].count);
        if (!sets[s].rows) break;
        if (!places) continue;
        sets[s].at = eipc_copied_rows(PyTuple_GetItem(at, (Py_ssize_t)s), "at", 0, (int64_t)places[s], &places_named);
        if (!sets[s].at) break;
        if (places_named != sets[s].count) {
            PyErr_Format(PyExc_ValueError, "set %zu has %zu rows and %zu places", s, sets[s].count, places_named);
            break;
        }
    }
    if (!PyErr_Occurred()) return sets;
    free_sets(sets, self->sets);
    return NULL;
}

/* Say where each column begins in a block, and how large the block is. */
int eipc_lay_out(const eipc_gatherer *self, const size_t *counts, uint64_t *offsets, uint64_t *size) {
    *size = 0;
    for (size_t i = 0; i < self->count; i++) {
        uint64_t row_bytes = (uint64_t)self->columns[i].buffer.shape[1], count = counts[self->columns[i].which], bytes;
        offsets[i] = *size;
        if (__builtin_mul_overflow(row_bytes, count, &bytes) || bytes > MAX_BYTES || *size > MAX_BYTES) {
            PyErr_Format(PyExc_ValueError, "a batch of %llu rows of %llu bytes is too large", (unsigned long long)count,
                         (unsigned long long)row_bytes);
            return -1;
        }
        *size += (bytes + EIPC_ALIGN - 1) & ~(uint64_t)(EIPC_ALIGN - 1);
    }
    return 0;
}

void eipc_copy_all(eipc_gatherer *self, const eipc_row_set *sets, const uint64_t *offsets, eipc_block *block, eipc_gather_part *parts) {
    uint64_t bytes = 0;
    size_t count = self->count;
    for (size_t i = 0; i < count; i++) {
        const eipc_column *column = &self->columns[i];
        const eipc_row_set *set = &sets[column->which];
        parts[i] = (eipc_gather_part){column->buffer.buf, (size_t)column->buffer.strides[0], (size_t)column->buffer.shape[1],
                                      set->rows, set->count, set->at, (uint8_t *)block->data + offsets[i]};
        bytes += parts[i].row_bytes * parts[i].count;
    }
    unsigned threads = self->threads;
    if (bytes < RELEASE_GIL_FROM) {
        eipc_gather(parts, count, 1);
        return;
    }
    Py_BEGIN_ALLOW_THREADS
    eipc_gather(parts, count, threads);
    Py_END_ALLOW_THREADS
}

PyObject *eipc_offsets(const uint64_t *values, size_t count) {
    PyObject *tuple = PyTuple_New((Py_ssize_t)count);
    for (size_t i = 0; tuple && i < count; i++) {
        PyObject *item = PyLong_FromUnsignedLongLong(values[i]);
        if (!item || PyTuple_SetItem(tuple, (Py_ssize_t)i, item) < 0) {
            Py_DECREF(tuple);
            return NULL;
        }
    }
    return tuple;
}

static int check_call(const eipc_gatherer *self, PyObject *rows, PyObject *at) {
    if (self->closed) {
        PyErr_SetString(PyExc_ValueError, "this gather was closed");
        return -1;
    }
    if (PyTuple_Size(rows) == (Py_ssize_t)self->sets && (!at || PyTuple_Size(at) == (Py_ssize_t)self->sets)) return 0;
    PyErr_Format(PyExc_ValueError, "%zu sets of rows are required, got %zd", self->sets, PyTuple_Size(rows));
    return -1;
}

int eipc_begin_call(eipc_gatherer *self, eipc_scratch *scratch) {
    size_t each = sizeof(eipc_gather_part) + sizeof(uint64_t) + sizeof(size_t); /* there are no more sets than columns */
    scratch->parts = malloc(self->count * each);
    if (!scratch->parts) {
        PyErr_NoMemory();
        return -1;
    }
    scratch->offsets = (uint64_t *)(scratch->parts + self->count);
    scratch->counts = (size_t *)(scratch->offsets + self->count);
    self->running++;
    return 0;
}

void eipc_end_call(eipc_gatherer *self, eipc_scratch *scratch) {
    free(scratch->parts);
    if (--self->running == 0 && self->closed) release_columns(self);
}

static PyObject *gather_run(eipc_gatherer *self, PyObject *args) {
    PyObject *rows, *offsets = NULL;
    eipc_pool *pool;
    if (!PyArg_ParseTuple(args, "O!O!", &PyTuple_Type, &rows, eipc_pool_type, &pool) || check_call(self, rows, NULL) < 0) return NULL;
    eipc_scratch scratch;
    if (eipc_begin_call(self, &scratch) < 0) return NULL;
    size_t set_count = self->sets, count = self->count;
    eipc_block *block = NULL;
    eipc_row_set *sets = take_sets(self, rows, NULL, NULL);
    if (sets) {
        uint64_t size;
        for (size_t s = 0; s < set_count; s++) scratch.counts[s] = sets[s].count;
        if (eipc_lay_out(self, scratch.counts, scratch.offsets, &size) == 0) block = eipc_take_block(pool, size);
        if (block) {
            eipc_copy_all(self, sets, scratch.offsets, block, scratch.parts);
            offsets = eipc_offsets(scratch.offsets, count);
        }
        free_sets(sets, set_count);
    }
    eipc_end_call(self, &scratch);
    PyObject *result = offsets ? PyTuple_Pack(2, (PyObject *)block, offsets) : NULL;
    Py_XDECREF(offsets);
    Py_XDECREF((PyObject *)block);
    return result;
}

static PyObject *gather_patch(eipc_gatherer *self, PyObject *args) {
    PyObject *rows, *at, *places;
    eipc_block *block;
    if (!PyArg_ParseTuple(args, "O!O!O!O!", eipc_block_type, &block, &PyTuple_Type, &places, &PyTuple_Type, &rows, &PyTuple_Type, &at) ||
        check_call(self, rows, at) < 0)
        return NULL;
    if (PyTuple_Size(places) != (Py_ssize_t)self->sets) return PyErr_Format(PyExc_ValueError, "%zu numbers of places are required", self->sets);
    eipc_scratch scratch;
    if (eipc_begin_call(self, &scratch) < 0) return NULL;
    size_t set_count = self->sets;
    uint64_t size;
    for (size_t s = 0; s < set_count && !PyErr_Occurred(); s++) scratch.counts[s] = PyLong_AsSize_t(PyTuple_GetItem(places, (Py_ssize_t)s));
    if (!PyErr_Occurred() && eipc_lay_out(self, scratch.counts, scratch.offsets, &size) == 0) {
        eipc_row_set *sets = NULL;
        if (size != block->size)
            PyErr_Format(PyExc_ValueError, "the block has %llu bytes, a batch of these places has %llu",
                         (unsigned long long)block->size, (unsigned long long)size);
        else sets = take_sets(self, rows, at, scratch.counts);
        if (sets) {
            eipc_copy_all(self, sets, scratch.offsets, block, scratch.parts);
            free_sets(sets, set_count);
        }
    }
    eipc_end_call(self, &scratch);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

static PyObject *gather_close(eipc_gatherer *self, PyObject *Py_UNUSED(ignored)) {
    self->closed = true;
    if (self->running == 0) release_columns(self);
    Py_RETURN_NONE;
}

/* ---- types --------------------------------------------------------------------------------------------------------- */

static PyMethodDef gather_methods[] = {
    {"run", (PyCFunction)gather_run, METH_VARARGS, "Copy rows into a block of the pool; return it and where each column begins."},
    {"patch", (PyCFunction)gather_patch, METH_VARARGS, "Copy rows over some places of a block that `run` returned."},
    {"draw", (PyCFunction)(void (*)(void))eipc_gather_draw, METH_FASTCALL, "Draw rows, copy them, and look whether they still stand."},
    {"take", (PyCFunction)(void (*)(void))eipc_gather_take, METH_FASTCALL, "The same of rows that were drawn before."},
    {"close", (PyCFunction)gather_close, METH_NOARGS, "Let go of the columns, once calls under way are done."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot gather_slots[] = {
    {Py_tp_doc, "Gather(columns, which, threads): copies rows of columns of bytes."},
    {Py_tp_new, gather_new},
    {Py_tp_dealloc, gather_dealloc},
    {Py_tp_methods, gather_methods},
    {0, NULL},
};
static PyType_Spec gather_spec = {"edgeml_ipc.data._rows.Gather", sizeof(eipc_gatherer), 0, Py_TPFLAGS_DEFAULT, gather_slots};

PyTypeObject *eipc_gather_type;

int eipc_add_gather_type(PyObject *module) {
    return eipc_add_type(module, &gather_spec, &eipc_gather_type);
}
