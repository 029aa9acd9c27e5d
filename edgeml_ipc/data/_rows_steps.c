/* Thin binding of rows_steps.c: `Steps`, the episodes of the rows of one snapshot. */
#include "_rows_binding.h"

typedef struct {
    PyObject_HEAD
    Table *table;
    erb_steps steps;
} Steps;

static PyTypeObject *steps_type;

static void steps_dealloc(Steps *self) {
    erb_steps_close(&self->steps);
    Py_XDECREF((PyObject *)self->table);
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

PyObject *erb_new_steps(Table *table, const erb_span *spans, size_t count) {
    allocfunc alloc = (allocfunc)PyType_GetSlot(steps_type, Py_tp_alloc);
    Steps *self = (Steps *)alloc(steps_type, 0);
    if (!self) return NULL;
    self->table = (Table *)Py_NewRef((PyObject *)table);
    int status = erb_steps_open(table->table, spans, count, &self->steps);
    if (!status) return (PyObject *)self;
    Py_DECREF((PyObject *)self);
    return erb_raise(status);
}

/* ---- arguments ------------------------------------------------------------------------------------------------------- */

enum { MOST = 3 };

/* Arrays that a call was given: int64 ones, and at the end, if `bytes`, one of bytes. */
typedef struct {
    Py_buffer views[MOST];
    int64_t *numbers[MOST];
    size_t sizes[MOST];
    int held;
} Arrays;

static void let_go(Arrays *arrays) {
    while (arrays->held) PyBuffer_Release(&arrays->views[--arrays->held]);
}

/* Returns -1 with an error set, and nothing held. `read_only` of them are. */
static int take(Steps *self, Arrays *arrays, PyObject *const *objects, int count, int read_only, bool bytes) {
    arrays->held = 0;
    if (!erb_opened(self->table)) return -1;
    for (int i = 0; i < count; i++) {
        Py_buffer *view = &arrays->views[i];
        if (PyObject_GetBuffer(objects[i], view, PyBUF_C_CONTIGUOUS | (i < read_only ? 0 : PyBUF_WRITABLE)) < 0) break;
        arrays->held++;
        size_t each = bytes && i == count - 1 ? 1 : sizeof(int64_t);
        if ((size_t)view->itemsize != each) {
            PyErr_Format(PyExc_TypeError, "array %d must have items of %zu bytes, got %zd", i, each, view->itemsize);
            break;
        }
        arrays->numbers[i] = view->buf;
        arrays->sizes[i] = (size_t)view->len / each;
    }
    if (!PyErr_Occurred()) return 0;
    let_go(arrays);
    return -1;
}

static PyObject *answer(Arrays *arrays, bool sizes_fit, int status) {
    let_go(arrays);
    if (!sizes_fit) return PyErr_Format(PyExc_ValueError, "arrays of other sizes are required");
    if (status) return PyErr_Format(PyExc_IndexError, "a row is not held, or not of the episode");
    Py_RETURN_NONE;
}

static bool check_count(Py_ssize_t given, Py_ssize_t wanted) {
    if (given == wanted) return true;
    PyErr_Format(PyExc_TypeError, "%zd arguments are required, got %zd", wanted, given);
    return false;
}

/* ---- methods ---------------------------------------------------------------------------------------------------------- */

static PyObject *tell(Steps *self, PyObject *const *args, Py_ssize_t given, erb_question question) {
    Arrays a;
    if (!check_count(given, 2) || take(self, &a, args, 2, 1, false) < 0) return NULL;
    bool fits = a.sizes[0] == a.sizes[1];
    return answer(&a, fits, fits ? erb_steps_tell(&self->steps, question, a.numbers[0], a.sizes[0], a.numbers[1]) : 0);
}

static PyObject *steps_before(Steps *self, PyObject *const *args, Py_ssize_t n) { return tell(self, args, n, ERB_BEFORE); }
static PyObject *steps_after(Steps *self, PyObject *const *args, Py_ssize_t n) { return tell(self, args, n, ERB_AFTER); }
static PyObject *steps_order(Steps *self, PyObject *const *args, Py_ssize_t n) { return tell(self, args, n, ERB_RANK); }
static PyObject *steps_stamps(Steps *self, PyObject *const *args, Py_ssize_t n) { return tell(self, args, n, ERB_STAMP); }

static PyObject *steps_holds(Steps *self, PyObject *const *args, Py_ssize_t given) {
    Arrays a;
    if (!check_count(given, 2) || take(self, &a, args, 2, 1, true) < 0) return NULL;
    bool fits = a.sizes[0] == a.sizes[1];
    if (fits) erb_steps_holds(&self->steps, a.numbers[0], a.sizes[0], (uint8_t *)a.numbers[1]);
    return answer(&a, fits, ERB_OK);
}

/* shift(rows, offsets, out) */
static PyObject *steps_shift(Steps *self, PyObject *const *args, Py_ssize_t given) {
    Arrays a;
    if (!check_count(given, 3) || take(self, &a, args, 3, 2, false) < 0) return NULL;
    bool fits = a.sizes[0] == a.sizes[1] && a.sizes[0] == a.sizes[2];
    return answer(&a, fits, fits ? erb_steps_shift(&self->steps, a.numbers[0], a.numbers[1], a.sizes[0], a.numbers[2]) : 0);
}

/* draw(shares, first, last, min_length, anchors) -> how many */
static PyObject *steps_draw(Steps *self, PyObject *const *args, Py_ssize_t given) {
    Arrays a;
    long long numbers[3]; /* first, last, min_length */
    if (!check_count(given, 5)) return NULL;
    for (int i = 0; i < 3; i++) {
        numbers[i] = PyLong_AsLongLong(args[1 + i]);
        if (PyErr_Occurred()) return NULL;
    }
    PyObject *const arrays[] = {args[0], args[4]};
    if (take(self, &a, arrays, 2, 1, false) < 0) return NULL;
    size_t found = 0;
    bool fits = a.sizes[0] == a.sizes[1] && numbers[0] <= numbers[1] && numbers[1] >= 0 && numbers[1] < INT32_MAX;
    int status = fits ? erb_steps_draw(&self->steps, (const double *)a.numbers[0], a.sizes[0], numbers[0], numbers[1], numbers[2], a.numbers[1], &found) : 0;
    PyObject *answered = answer(&a, fits, status);
    Py_XDECREF(answered);
    return answered ? PyLong_FromSize_t(found) : NULL;
}

/* reach(anchors, begin, end, rows, mask) */
static PyObject *steps_reach(Steps *self, PyObject *const *args, Py_ssize_t given) {
    Arrays a;
    if (!check_count(given, 5)) return NULL;
    long long begin = PyLong_AsLongLong(args[1]), end = PyErr_Occurred() ? -1 : PyLong_AsLongLong(args[2]);
    if (PyErr_Occurred()) return NULL;
    PyObject *const arrays[] = {args[0], args[3], args[4]};
    if (take(self, &a, arrays, 3, 1, true) < 0) return NULL;
    bool fits = begin < end && begin > INT32_MIN && end < INT32_MAX && a.sizes[1] == a.sizes[0] * (size_t)(end - begin) && a.sizes[2] == a.sizes[1];
    return answer(&a, fits, fits ? erb_steps_reach(&self->steps, a.numbers[0], a.sizes[0], begin, end, a.numbers[1], (uint8_t *)a.numbers[2]) : 0);
}

/* intact(anchors, rows, first, last, out) */
static PyObject *steps_intact(Steps *self, PyObject *const *args, Py_ssize_t given) {
    Arrays a;
    if (!check_count(given, 5)) return NULL;
    long long first = PyLong_AsLongLong(args[2]), last = PyErr_Occurred() ? 0 : PyLong_AsLongLong(args[3]);
    if (PyErr_Occurred()) return NULL;
    PyObject *const arrays[] = {args[0], args[1], args[4]};
    if (take(self, &a, arrays, 3, 2, true) < 0) return NULL;
    size_t n = a.sizes[0];
    bool fits = a.sizes[2] == n && (n ? a.sizes[1] % n == 0 : !a.sizes[1]) && first <= 0 && last >= 0 && first > INT32_MIN && last < INT32_MAX;
    int status = ERB_OK;
    if (fits && n)
        status = erb_steps_intact(&self->steps, a.numbers[0], a.numbers[1], n, a.sizes[1] / n, first, last, (uint8_t *)a.numbers[2]);
    return answer(&a, fits, status);
}

/* predecessors(out): for each run the one that it goes on from, -1 for none */
static PyObject *steps_predecessors(Steps *self, PyObject *const *args, Py_ssize_t given) {
    Arrays a;
    if (!check_count(given, 1) || take(self, &a, args, 1, 0, false) < 0) return NULL;
    bool fits = a.sizes[0] == self->steps.count;
    for (size_t i = 0; fits && i < self->steps.count; i++) a.numbers[0][i] = self->steps.runs[i].previous;
    return answer(&a, fits, ERB_OK);
}

#define FAST(function) ((PyCFunction)(void (*)(void))function), METH_FASTCALL

static PyMethodDef steps_methods[] = {{"before", FAST(steps_before), NULL},
                                      {"after", FAST(steps_after), NULL},
                                      {"order", FAST(steps_order), NULL},
                                      {"stamps", FAST(steps_stamps), NULL},
                                      {"holds", FAST(steps_holds), NULL},
                                      {"shift", FAST(steps_shift), NULL},
                                      {"draw", FAST(steps_draw), NULL},
                                      {"reach", FAST(steps_reach), NULL},
                                      {"intact", FAST(steps_intact), NULL},
                                      {"predecessors", FAST(steps_predecessors), NULL},
                                      {NULL, NULL, 0, NULL}};
static PyType_Slot steps_slots[] = {{Py_tp_dealloc, steps_dealloc}, {Py_tp_methods, steps_methods}, {0, NULL}};
static PyType_Spec steps_spec = {"edgeml_ipc.data._rows.Steps", sizeof(Steps), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                 steps_slots};

int erb_add_steps(PyObject *module) {
    steps_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &steps_spec, NULL);
    return steps_type ? PyModule_AddType(module, steps_type) : -1;
}
