/* Thin binding of rows.h. Every call holds the interpreter lock throughout: they are short, and do not wait. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <string.h>

#include "rows.h"

static PyObject *error_segment, *error_full, *error_closed;

static PyObject *raise_status(int status) {
    switch (status) {
    case ERB_FULL: return PyErr_Format(error_full, "every chunk is held by a live writer: make the buffer with smaller chunk_rows, or close writers");
    case ERB_NO_SLOT: return PyErr_Format(error_full, "every place for a writer is held by a live one: make the buffer with more max_writers, or close writers");
    case ERB_FOREIGN: return PyErr_Format(error_segment, "the segment is not a replay buffer of this library");
    case ERB_VERSIONED: return PyErr_Format(error_segment, "the segment has another version of the layout; this one is %d", ERB_VERSION);
    case ERB_UNREADY: return PyErr_Format(error_segment, "the segment is not ready: its creator is still at it, or died before it had finished");
    case ERB_DAMAGED: return PyErr_Format(error_segment, "the segment is damaged: it has values that are never written");
    case ERB_FORKED: return PyErr_Format(error_closed, "opened before fork(): a forked child must attach for itself before it inserts");
    default: return PyErr_Format(error_segment, "system error: %s", strerror(errno));
    }
}

typedef struct {
    PyObject_HEAD
    erb_table *table; /* NULL: closed */
    Py_buffer segment;
} Table;

static erb_table *opened(Table *self) {
    if (!self->table) PyErr_SetString(error_closed, "the buffer was closed on this side");
    return self->table;
}

/* ---- buffers of int64 ---------------------------------------------------------------------------------------------- */

static int64_t *numbers(PyObject *object, Py_buffer *view, size_t *count, int writable) {
    if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0)) < 0) return NULL;
    *count = (size_t)view->len / sizeof(int64_t);
    return view->buf;
}

/* ---- the segment before it is a table ------------------------------------------------------------------------------- */

static PyObject *rows_schema_at(PyObject *module, PyObject *args) {
    (void)module;
    unsigned long long capacity, chunk_rows, writer_slots;
    if (!PyArg_ParseTuple(args, "KKK", &capacity, &chunk_rows, &writer_slots)) return NULL;
    uint64_t at = erb_schema_at(capacity, chunk_rows, writer_slots);
    if (!at)
        return PyErr_Format(PyExc_ValueError, "capacity %llu, chunk_rows %llu, max_writers %llu: out of range (at most 2**40 rows, %u chunks, %d writers)",
                            capacity, chunk_rows, writer_slots, ERB_MAX_CHUNKS, ERB_MAX_WRITERS);
    return PyLong_FromUnsignedLongLong(at);
}

static PyObject *rows_format(PyObject *module, PyObject *args) {
    (void)module;
    unsigned long long capacity, chunk_rows, writer_slots;
    Py_buffer segment, schema, incarnation;
    if (!PyArg_ParseTuple(args, "w*KKKy*y*", &segment, &capacity, &chunk_rows, &writer_slots, &schema, &incarnation)) return NULL;
    int status = incarnation.len == 16 ? erb_format(segment.buf, (uint64_t)segment.len, capacity, chunk_rows, writer_slots, (uint64_t)schema.len, incarnation.buf) : ERB_DAMAGED;
    if (!status) memcpy((uint8_t *)segment.buf + erb_schema_at(capacity, chunk_rows, writer_slots), schema.buf, (size_t)schema.len);
    PyBuffer_Release(&segment);
    PyBuffer_Release(&schema);
    PyBuffer_Release(&incarnation);
    return status ? raise_status(status) : Py_NewRef(Py_None);
}

static PyObject *rows_publish(PyObject *module, PyObject *object) {
    (void)module;
    Py_buffer segment;
    if (PyObject_GetBuffer(object, &segment, PyBUF_WRITABLE) < 0) return NULL;
    int status = (size_t)segment.len >= sizeof(erb_header) ? ERB_OK : ERB_FOREIGN;
    if (!status) erb_publish(segment.buf);
    PyBuffer_Release(&segment);
    return status ? raise_status(status) : Py_NewRef(Py_None);
}

static PyObject *rows_is_ready(PyObject *module, PyObject *object) {
    (void)module;
    Py_buffer segment;
    if (PyObject_GetBuffer(object, &segment, PyBUF_SIMPLE) < 0) return NULL;
    int status = erb_inspect(segment.buf, (uint64_t)segment.len);
    PyBuffer_Release(&segment);
    return PyBool_FromLong(status != ERB_UNREADY);
}

static PyObject *rows_inspect(PyObject *module, PyObject *object) {
    (void)module;
    Py_buffer segment;
    if (PyObject_GetBuffer(object, &segment, PyBUF_SIMPLE) < 0) return NULL;
    int status = erb_inspect(segment.buf, (uint64_t)segment.len);
    PyObject *found = NULL;
    if (status) {
        raise_status(status);
    } else {
        const erb_header *header = segment.buf;
        unsigned long long capacity = header->capacity, chunk_rows = header->chunk_rows, slots = header->writer_slots;
        const char *schema = (const char *)segment.buf + erb_schema_at(capacity, chunk_rows, slots);
        found = Py_BuildValue("KKKy#y#", capacity, chunk_rows, slots, schema, (Py_ssize_t)header->schema_bytes,
                              (const char *)header->incarnation, (Py_ssize_t)sizeof header->incarnation);
    }
    PyBuffer_Release(&segment);
    return found;
}

/* ---- Table --------------------------------------------------------------------------------------------------------- */

static void close_table(Table *self) {
    erb_table *table = self->table;
    self->table = NULL;
    if (!table) return;
    erb_close(table);
    PyBuffer_Release(&self->segment);
}

static PyObject *table_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    PyObject *segment;
    int fd;
    unsigned long long sequence_at, flags_at;
    if (!PyArg_ParseTuple(args, "OiKK", &segment, &fd, &sequence_at, &flags_at)) return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Table *self = (Table *)alloc(type, 0);
    if (!self) return NULL;
    if (PyObject_GetBuffer(segment, &self->segment, PyBUF_WRITABLE) == 0) {
        int status = erb_inspect(self->segment.buf, (uint64_t)self->segment.len);
        if (!status) status = erb_open(self->segment.buf, fd, sequence_at, flags_at, &self->table);
        if (!status) return (PyObject *)self;
        PyBuffer_Release(&self->segment);
        raise_status(status);
    }
    Py_DECREF(self);
    return NULL;
}

static void table_dealloc(Table *self) {
    close_table(self);
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *table_close(Table *self, PyObject *unused) {
    (void)unused;
    close_table(self);
    Py_RETURN_NONE;
}

static PyObject *table_register(Table *self, PyObject *unused) {
    (void)unused;
    uint32_t place;
    int64_t number;
    if (!opened(self)) return NULL;
    int status = erb_register(self->table, &place, &number);
    return status ? raise_status(status) : Py_BuildValue("IL", (unsigned)place, (long long)number);
}

/* A place of this process's, or -1 with an error set. */
static int64_t own_place(Table *self, PyObject *object) {
    if (!opened(self)) return -1;
    unsigned long place = PyLong_AsUnsignedLong(object);
    if (PyErr_Occurred()) return -1;
    if (place < self->table->writer_slots && self->table->writers[place].number) return (int64_t)place;
    PyErr_SetString(error_closed, "the writer was closed");
    return -1;
}

static PyObject *table_forget(Table *self, PyObject *object) {
    int64_t place = own_place(self, object);
    if (place < 0) return NULL;
    erb_forget(self->table, (uint32_t)place);
    Py_RETURN_NONE;
}

static PyObject *table_reserve(Table *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 2) return PyErr_Format(PyExc_TypeError, "reserve takes a place and a number of rows");
    int64_t place = own_place(self, args[0]), row, sequence;
    if (place < 0) return NULL;
    unsigned long long rows = PyLong_AsUnsignedLongLong(args[1]);
    uint64_t granted;
    if (PyErr_Occurred()) return NULL;
    int status = erb_reserve(self->table, (uint32_t)place, rows, &row, &granted, &sequence);
    return status ? raise_status(status) : Py_BuildValue("LKL", (long long)row, (unsigned long long)granted, (long long)sequence);
}

static PyObject *table_commit(Table *self, PyObject *object) {
    int64_t place = own_place(self, object);
    if (place < 0) return NULL;
    int status = erb_commit(self->table, (uint32_t)place);
    return status ? raise_status(status) : Py_NewRef(Py_None);
}

static PyObject *table_mark(Table *self, PyObject *args) {
    PyObject *object;
    unsigned char flags;
    if (!PyArg_ParseTuple(args, "Ob", &object, &flags)) return NULL;
    int64_t place = own_place(self, object);
    if (place < 0) return NULL;
    int status = erb_mark(self->table, (uint32_t)place, flags);
    return status ? raise_status(status) : Py_NewRef(Py_None);
}

static PyObject *table_recover(Table *self, PyObject *unused) {
    (void)unused;
    uint32_t recovered;
    if (!opened(self)) return NULL;
    int status = erb_recover(self->table, &recovered);
    return status ? raise_status(status) : PyLong_FromUnsignedLong(recovered);
}

static PyObject *table_max_spans(Table *self, PyObject *unused) {
    (void)unused;
    return opened(self) ? PyLong_FromSize_t(erb_max_spans(self->table)) : NULL;
}

static PyObject *table_snapshot(Table *self, PyObject *object) {
    Py_buffer view;
    size_t room, count;
    if (!opened(self)) return NULL;
    int64_t *spans = numbers(object, &view, &room, 1);
    if (!spans) return NULL;
    int status = room >= 3 * erb_max_spans(self->table) ? erb_snapshot(self->table, (erb_span *)spans, &count) : ERB_OK + 1;
    PyBuffer_Release(&view);
    if (status > 0) return PyErr_Format(PyExc_ValueError, "spans has room for %zu numbers; 3 * max_spans() are required", room);
    return status ? raise_status(status) : PyLong_FromSize_t(count);
}

/* resolve(spans, count, positions, rows, stamps) */
static PyObject *table_resolve(Table *self, PyObject *const *args, Py_ssize_t given) {
    Py_buffer views[4];
    size_t sizes[4], held = 0, count;
    int64_t *data[4];
    static const int from[4] = {0, 2, 3, 4};
    if (given != 5) return PyErr_Format(PyExc_TypeError, "resolve takes spans, count, positions, rows, stamps");
    if (!opened(self)) return NULL;
    count = PyLong_AsSize_t(args[1]);
    if (PyErr_Occurred()) return NULL;
    for (; held < 4; held++)
        if (!(data[held] = numbers(args[from[held]], &views[held], &sizes[held], held > 1))) break;
    int status = ERB_DAMAGED;
    if (held == 4 && count <= sizes[0] / 3 && sizes[2] >= sizes[1] && sizes[3] >= sizes[1])
        status = erb_resolve((const erb_span *)data[0], count, data[1], sizes[1], data[2], data[3]);
    for (size_t i = 0; i < held; i++) PyBuffer_Release(&views[i]);
    if (held < 4) return NULL;
    if (status) return PyErr_Format(PyExc_ValueError, "positions must be below the end of the last span, and rows and stamps as many as they");
    Py_RETURN_NONE;
}

/* intact(rows, stamps, out) -> how many are not */
static PyObject *table_intact(Table *self, PyObject *const *args, Py_ssize_t given) {
    Py_buffer views[3];
    size_t sizes[3], held = 0, lost = 0;
    int64_t *data[3];
    if (given != 3) return PyErr_Format(PyExc_TypeError, "intact takes rows, stamps, out");
    if (!opened(self)) return NULL;
    for (; held < 3; held++)
        if (!(data[held] = numbers(args[held], &views[held], &sizes[held], held == 2))) break;
    int status = ERB_DAMAGED;
    if (held == 3 && sizes[1] >= sizes[0] && (size_t)views[2].len >= sizes[0])
        status = erb_intact(self->table, data[0], data[1], sizes[0], (uint8_t *)data[2], &lost);
    for (size_t i = 0; i < held; i++) PyBuffer_Release(&views[i]);
    if (held < 3) return NULL;
    if (status) return PyErr_Format(PyExc_ValueError, "rows must be below the capacity, and stamps and out as many as they");
    return PyLong_FromSize_t(lost);
}

static PyObject *table_counts(Table *self, PyObject *unused) {
    (void)unused;
    erb_counts counts;
    if (!opened(self)) return NULL;
    int status = erb_count(self->table, &counts);
    if (status) return raise_status(status);
    return Py_BuildValue("LLLLLL", (long long)counts.inserted, (long long)counts.held, (long long)counts.newest,
                         (long long)counts.sampled, (long long)counts.redrawn, (long long)counts.writers);
}

static PyObject *table_tally(Table *self, PyObject *args) {
    long long sampled, redrawn;
    if (!opened(self) || !PyArg_ParseTuple(args, "LL", &sampled, &redrawn)) return NULL;
    erb_tally(self->table, sampled, redrawn);
    Py_RETURN_NONE;
}

static PyObject *table_previous(Table *self, PyObject *args) {
    long long row, stamp;
    int64_t chunk, generation;
    if (!opened(self) || !PyArg_ParseTuple(args, "LL", &row, &stamp)) return NULL;
    int status = erb_previous(self->table, row, stamp, &chunk, &generation);
    return status ? raise_status(status) : Py_BuildValue("LL", (long long)chunk, (long long)generation);
}

#define FAST(function) ((PyCFunction)(void (*)(void))function), METH_FASTCALL

static PyMethodDef table_methods[] = {{"close", (PyCFunction)table_close, METH_NOARGS, NULL},
                                      {"register", (PyCFunction)table_register, METH_NOARGS, NULL},
                                      {"forget", (PyCFunction)table_forget, METH_O, NULL},
                                      {"reserve", FAST(table_reserve), NULL},
                                      {"commit", (PyCFunction)table_commit, METH_O, NULL},
                                      {"mark", (PyCFunction)table_mark, METH_VARARGS, NULL},
                                      {"recover", (PyCFunction)table_recover, METH_NOARGS, NULL},
                                      {"max_spans", (PyCFunction)table_max_spans, METH_NOARGS, NULL},
                                      {"snapshot", (PyCFunction)table_snapshot, METH_O, NULL},
                                      {"resolve", FAST(table_resolve), NULL},
                                      {"intact", FAST(table_intact), NULL},
                                      {"counts", (PyCFunction)table_counts, METH_NOARGS, NULL},
                                      {"tally", (PyCFunction)table_tally, METH_VARARGS, NULL},
                                      {"previous", (PyCFunction)table_previous, METH_VARARGS, NULL},
                                      {NULL, NULL, 0, NULL}};
static PyType_Slot table_slots[] = {{Py_tp_new, table_new}, {Py_tp_dealloc, table_dealloc}, {Py_tp_methods, table_methods}, {0, NULL}};
static PyType_Spec table_spec = {"edgeml_ipc.data._rows.Table", sizeof(Table), 0, Py_TPFLAGS_DEFAULT, table_slots};

static PyMethodDef module_methods[] = {{"schema_at", rows_schema_at, METH_VARARGS, NULL},
                                       {"format", rows_format, METH_VARARGS, NULL},
                                       {"publish", rows_publish, METH_O, NULL},
                                       {"is_ready", rows_is_ready, METH_O, NULL},
                                       {"inspect", rows_inspect, METH_O, NULL},
                                       {NULL, NULL, 0, NULL}};

static int module_exec(PyObject *module) {
    PyObject *errors = PyImport_ImportModule("edgeml_ipc.errors");
    if (!errors) return -1;
    error_segment = PyObject_GetAttrString(errors, "SegmentError");
    error_full = PyObject_GetAttrString(errors, "BufferFull");
    error_closed = PyObject_GetAttrString(errors, "ConnectionClosed");
    Py_DECREF(errors);
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &table_spec, NULL);
    if (!error_segment || !error_full || !error_closed || !type || PyModule_AddType(module, type) < 0) return -1;
    Py_DECREF(type);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};
static struct PyModuleDef module_def = {PyModuleDef_HEAD_INIT, "_rows", NULL, 0, module_methods, module_slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__rows(void) { return PyModuleDef_Init(&module_def); }
