/* Thin binding of rows_wait.c: `Flow`, how a process waits for a change in a segment, and the counts of its rate limiter. */
#include "_rows_binding.h"

#include <errno.h>

#define REGISTRY_AT 4096
#define SLICE_NS 100000000u /* after which signals are seen to, and the caller looks again */

typedef struct {
    PyObject_HEAD
    Py_buffer segment; /* of its own: a wait outlives the closing of the table */
    uint64_t places;
} Flow;

static erb_header *header_of(const Flow *self) { return self->segment.buf; }

static PyObject *flow_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    PyObject *segment;
    if (!PyArg_ParseTuple(args, "O", &segment)) return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Flow *self = (Flow *)alloc(type, 0);
    if (!self) return NULL;
    if (PyObject_GetBuffer(segment, &self->segment, PyBUF_WRITABLE) == 0) {
        uint64_t bytes = (uint64_t)self->segment.len;
        self->places = bytes >= REGISTRY_AT ? header_of(self)->writer_slots : 0;
        if (self->places >= 1 && self->places <= ERB_MAX_WRITERS && self->places <= (bytes - REGISTRY_AT) / sizeof(erb_slot)) return (PyObject *)self;
        erb_raise(ERB_DAMAGED);
    }
    Py_DECREF(self);
    return NULL;
}

static void flow_dealloc(Flow *self) {
    if (self->segment.obj) PyBuffer_Release(&self->segment);
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* ---- waiting -------------------------------------------------------------------------------------------------------- */

static PyObject *flow_begin(Flow *self, PyObject *unused) {
    (void)unused;
    return PyLong_FromUnsignedLong(erb_wait_begin(header_of(self)));
}

/* wait(seen, seconds or None) */
static PyObject *flow_wait(Flow *self, PyObject *args) {
    unsigned int seen;
    PyObject *object;
    if (!PyArg_ParseTuple(args, "IO", &seen, &object)) return NULL;
    double seconds = object == Py_None ? 1 : PyFloat_AsDouble(object);
    if (PyErr_Occurred()) return NULL;
    uint64_t nanoseconds = seconds * 1e9 < SLICE_NS ? (uint64_t)(seconds > 0 ? seconds * 1e9 : 0) : SLICE_NS;
    int status = ERB_OK, error = 0;
    if (nanoseconds) {
        Py_BEGIN_ALLOW_THREADS
        status = erb_wait(header_of(self), seen, nanoseconds);
        error = errno;
        Py_END_ALLOW_THREADS
    }
    errno = error;
    if (status) return erb_raise(status);
    return PyErr_CheckSignals() ? NULL : Py_NewRef(Py_None);
}

static PyObject *flow_wake(Flow *self, PyObject *unused) {
    (void)unused;
    erb_wake_all(header_of(self));
    Py_RETURN_NONE;
}

/* ---- the counts ------------------------------------------------------------------------------------------------------ */

static PyObject *flow_granted(Flow *self, PyObject *unused) {
    (void)unused;
    int64_t inserts, samples;
    int status = erb_granted(header_of(self), &inserts, &samples);
    return status ? erb_raise(status) : Py_BuildValue("LL", (long long)inserts, (long long)samples);
}

static PyObject *grant(Flow *self, PyObject *args, _Atomic int64_t *count) {
    long long seen, rows;
    if (!PyArg_ParseTuple(args, "LL", &seen, &rows)) return NULL;
    if (seen < 0 || rows < 1 || seen > INT64_MAX - rows) return erb_raise(ERB_DAMAGED);
    return PyBool_FromLong(erb_grant(header_of(self), count, seen, rows));
}

static PyObject *flow_grant_insert(Flow *self, PyObject *args) { return grant(self, args, &header_of(self)->granted_inserts); }
static PyObject *flow_grant_sample(Flow *self, PyObject *args) { return grant(self, args, &header_of(self)->granted_samples); }

static PyObject *flow_give_back(Flow *self, PyObject *args) {
    long long inserts, samples;
    if (!PyArg_ParseTuple(args, "LL", &inserts, &samples)) return NULL;
    erb_grant_back(header_of(self), inserts, samples);
    Py_RETURN_NONE;
}

/* charge(place, rows): the writer of that place was granted rows, or gave them back */
static PyObject *flow_charge(Flow *self, PyObject *args) {
    unsigned int place;
    long long rows;
    if (!PyArg_ParseTuple(args, "IL", &place, &rows)) return NULL;
    if (place >= self->places) return PyErr_Format(PyExc_ValueError, "place must be below %llu, got %u", (unsigned long long)self->places, place);
    erb_slot *slots = (erb_slot *)((uint8_t *)self->segment.buf + REGISTRY_AT);
    atomic_fetch_add_explicit(&slots[place].granted, rows, memory_order_relaxed);
    Py_RETURN_NONE;
}

static PyObject *flow_limits(Flow *self, PyObject *unused) {
    (void)unused;
    const erb_header *header = header_of(self);
    return Py_BuildValue("dLd", header->samples_per_insert, (long long)header->min_rows, header->slack_samples);
}

/* set_limits(samples_per_insert, min_rows, slack_samples): before the segment is published */
static PyObject *flow_set_limits(Flow *self, PyObject *args) {
    erb_header *header = header_of(self);
    double rate, slack;
    long long min_rows;
    if (!PyArg_ParseTuple(args, "dLd", &rate, &min_rows, &slack)) return NULL;
    header->samples_per_insert = rate;
    header->slack_samples = slack;
    header->min_rows = min_rows;
    Py_RETURN_NONE;
}

static PyMethodDef flow_methods[] = {{"begin", (PyCFunction)flow_begin, METH_NOARGS, NULL},
                                     {"wait", (PyCFunction)flow_wait, METH_VARARGS, NULL},
                                     {"wake", (PyCFunction)flow_wake, METH_NOARGS, NULL},
                                     {"granted", (PyCFunction)flow_granted, METH_NOARGS, NULL},
                                     {"grant_insert", (PyCFunction)flow_grant_insert, METH_VARARGS, NULL},
                                     {"grant_sample", (PyCFunction)flow_grant_sample, METH_VARARGS, NULL},
                                     {"give_back", (PyCFunction)flow_give_back, METH_VARARGS, NULL},
                                     {"charge", (PyCFunction)flow_charge, METH_VARARGS, NULL},
                                     {"limits", (PyCFunction)flow_limits, METH_NOARGS, NULL},
                                     {"set_limits", (PyCFunction)flow_set_limits, METH_VARARGS, NULL},
                                     {NULL, NULL, 0, NULL}};
static PyType_Slot flow_slots[] = {{Py_tp_new, flow_new}, {Py_tp_dealloc, flow_dealloc}, {Py_tp_methods, flow_methods}, {0, NULL}};
static PyType_Spec flow_spec = {"edgeml_ipc.data._rows.Flow", sizeof(Flow), 0, Py_TPFLAGS_DEFAULT, flow_slots};

int erb_add_flow(PyObject *module) {
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &flow_spec, NULL);
    int status = type ? PyModule_AddType(module, type) : -1;
    Py_XDECREF((PyObject *)type);
    return status;
}
