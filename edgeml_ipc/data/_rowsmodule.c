/* Thin binding of rows.h; the inserts are in _rows_stream.c. These calls hold the interpreter lock: they are short, and do not wait.
 *
 * This file is longer than 400 lines because each function of rows.h has its binding here, and each is short. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <string.h>

#include "_kernels_binding.h"
#include "_rows_binding.h"

static PyObject *error_segment, *error_full, *error_closed;

PyObject *erb_raise(int status) {
    switch (status) {
    case ERB_FULL: return PyErr_Format(error_full, "every chunk is held by a live writer: make the buffer with smaller chunk_rows, or close writers");
    case ERB_NO_SLOT: return PyErr_Format(error_full, "every place for a writer is held by a live one: make the buffer with more max_writers, or close writers");
    case ERB_FOREIGN: return PyErr_Format(error_segment, "the segment is not a replay buffer of this library");
    case ERB_VERSIONED: return PyErr_Format(error_segment, "the segment has another version of the layout; this one is %d", ERB_VERSION);
    case ERB_UNREADY: return PyErr_Format(error_segment, "the segment is not ready: its creator is still at it, or died before it had finished");
    case ERB_DAMAGED: return PyErr_Format(error_segment, "the segment is damaged: it has values that are never written");
    case ERB_FORKED: return PyErr_Format(error_closed, "opened before fork(): a forked child must attach for itself before it inserts");
    case ERB_UNFINISHED: return PyErr_Format(PyExc_ValueError, "'next_observations' is missing; it is needed where an episode ends");
    default: return PyErr_Format(error_segment, "system error: %s", strerror(errno));
    }
}

erb_table *erb_opened(Table *self) {
    if (!self->table || self->closing) {
        PyErr_SetString(error_closed, "the buffer was closed on this side");
        return NULL;
    }
    return self->table;
}

/* ---- buffers of int64 ---------------------------------------------------------------------------------------------- */

static int64_t *numbers(PyObject *object, Py_buffer *view, size_t *count, int writable) {
    if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0)) < 0) return NULL;
    *count = (size_t)view->len / sizeof(int64_t);
    return view->buf;
}

/* ---- the segment before it is a table ------------------------------------------------------------------------------- */

/* (capacity, chunk_rows, max_writers, chunk_frames, stack, cursor_slots) */
static int geometry_from(PyObject *object, erb_geometry *g) {
    unsigned long long n[6];
    if (!PyArg_ParseTuple(object, "KKKKKK", &n[0], &n[1], &n[2], &n[3], &n[4], &n[5])) return -1;
    *g = (erb_geometry){n[0], n[1], n[2], n[3], n[4], n[5]};
    if (erb_schema_at(g)) return 0;
    PyErr_Format(PyExc_ValueError, "capacity %llu, chunk_rows %llu, max_writers %llu, frames of a chunk %llu, of a stack %llu, %llu cursors: "
                 "out of range (at most 2**40 rows, %u chunks, %d writers, %u frames, %d of a stack, %d cursors)",
                 n[0], n[1], n[2], n[3], n[4], n[5], ERB_MAX_CHUNKS, ERB_MAX_WRITERS, ERB_MAX_FRAMES, ERB_MAX_STACK, ERB_MAX_CURSORS);
    return -1;
}

static PyObject *rows_schema_at(PyObject *module, PyObject *object) {
    (void)module;
    erb_geometry geometry;
    return geometry_from(object, &geometry) ? NULL : PyLong_FromUnsignedLongLong(erb_schema_at(&geometry));
}

static PyObject *rows_format(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *numbers;
    erb_geometry geometry;
    Py_buffer segment, schema, incarnation;
    if (!PyArg_ParseTuple(args, "w*O!y*y*", &segment, &PyTuple_Type, &numbers, &schema, &incarnation)) return NULL;
    int status = ERB_DAMAGED, failed = geometry_from(numbers, &geometry);
    if (!failed && incarnation.len == 16) status = erb_format(segment.buf, (uint64_t)segment.len, &geometry, (uint64_t)schema.len, incarnation.buf);
    if (!failed && !status) memcpy((uint8_t *)segment.buf + erb_schema_at(&geometry), schema.buf, (size_t)schema.len);
    PyBuffer_Release(&segment);
    PyBuffer_Release(&schema);
    PyBuffer_Release(&incarnation);
    if (failed) return NULL;
    return status ? erb_raise(status) : Py_NewRef(Py_None);
}

static PyObject *rows_publish(PyObject *module, PyObject *object) {
    (void)module;
    Py_buffer segment;
    if (PyObject_GetBuffer(object, &segment, PyBUF_WRITABLE) < 0) return NULL;
    int status = (size_t)segment.len >= sizeof(erb_header) ? ERB_OK : ERB_FOREIGN;
    if (!status) erb_publish(segment.buf);
    PyBuffer_Release(&segment);
    return status ? erb_raise(status) : Py_NewRef(Py_None);
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
        erb_raise(status);
    } else {
        const erb_header *header = segment.buf;
        erb_geometry g = {header->capacity, header->chunk_rows, header->writer_slots, header->chunk_frames, header->stack, header->cursor_slots};
        uint64_t at = erb_schema_at(&g); /* asked again: another process may have changed what was inspected */
        if (!at || at > (uint64_t)segment.len || header->schema_bytes > (uint64_t)segment.len - at) erb_raise(ERB_DAMAGED);
        else
            found = Py_BuildValue("(KKKKKK)y#y#", (unsigned long long)g.capacity, (unsigned long long)g.chunk_rows, (unsigned long long)g.writer_slots,
                                  (unsigned long long)g.chunk_frames, (unsigned long long)g.stack, (unsigned long long)g.cursor_slots,
                                  (const char *)segment.buf + at, (Py_ssize_t)header->schema_bytes, (const char *)header->incarnation,
                                  (Py_ssize_t)sizeof header->incarnation);
    }
    PyBuffer_Release(&segment);
    return found;
}

/* ---- Table --------------------------------------------------------------------------------------------------------- */

static void close_table(Table *self) {
    erb_table *table = self->table;
    self->closing = true;
    if (!table || self->users) return; /* whoever uses it without the interpreter lock closes it at its end */
    self->table = NULL;
    erb_close(table);
    PyBuffer_Release(&self->segment);
}

void erb_let_go(Table *self) {
    if (--self->users == 0 && self->closing) close_table(self);
}

/* A column of the data: (offset, kind, item_bytes, run_bytes). */
static int column_from(PyObject *object, const Py_buffer *segment, erb_column *column) {
    const erb_header *h = segment->buf;
    unsigned long long offset, item_bytes, run_bytes;
    int kind;
    if (!PyArg_ParseTuple(object, "KiKK", &offset, &kind, &item_bytes, &run_bytes)) return -1;
    uint64_t chunks = erb_chunks_for(h->capacity, h->chunk_rows), items = kind == ERB_ROWS ? h->capacity : chunks * h->chunk_frames;
    uint64_t stored = kind == ERB_STACKS ? item_bytes / h->stack : item_bytes, left = (uint64_t)segment->len;
    bool is_fine = kind >= ERB_ROWS && kind <= ERB_STACKS && offset <= left && (!stored || items <= (left - offset) / stored);
    if (is_fine && kind == ERB_STACKS) is_fine = run_bytes && item_bytes % (h->stack * run_bytes) == 0;
    if (is_fine && kind != ERB_ROWS) is_fine = h->chunk_frames != 0;
    *column = (erb_column){(uint8_t *)segment->buf + (is_fine ? offset : 0), (erb_kind)kind, item_bytes, run_bytes};
    if (!is_fine) PyErr_Format(PyExc_ValueError, "a column of %llu bytes an item at offset %llu does not fit the segment", item_bytes, offset);
    return is_fine ? 0 : -1;
}

static int open_table(Table *self, int fd, const erb_places *places, PyObject *columns) {
    Py_ssize_t count = PyTuple_Size(columns);
    erb_column *found = count < 0 ? NULL : PyMem_Malloc(((size_t)count + 1) * sizeof *found);
    if (!found) return count < 0 ? -1 : (PyErr_NoMemory(), -1);
    int failed = erb_inspect(self->segment.buf, (uint64_t)self->segment.len);
    if (failed) erb_raise(failed);
    for (Py_ssize_t i = 0; !failed && i < count; i++) failed = column_from(PyTuple_GetItem(columns, i), &self->segment, &found[i]);
    if (!failed) {
        failed = erb_open(self->segment.buf, fd, places, found, (size_t)count, &self->table);
        if (failed) erb_raise(failed);
    }
    PyMem_Free(found);
    return failed ? -1 : 0;
}

static PyObject *table_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    PyObject *segment, *columns;
    int fd;
    unsigned long long at[6];
    if (!PyArg_ParseTuple(args, "Oi(KKKKKK)O!", &segment, &fd, &at[0], &at[1], &at[2], &at[3], &at[4], &at[5], &PyTuple_Type, &columns)) return NULL;
    erb_places places = {at[0], at[1], at[2], at[3], at[4], at[5]};
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Table *self = (Table *)alloc(type, 0);
    if (!self) return NULL;
    if (PyObject_GetBuffer(segment, &self->segment, PyBUF_WRITABLE) == 0) {
        if (open_table(self, fd, &places, columns) == 0) return (PyObject *)self;
        PyBuffer_Release(&self->segment);
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
    if (!erb_opened(self)) return NULL;
    int status = erb_register(self->table, &place, &number);
    return status ? erb_raise(status) : Py_BuildValue("IL", (unsigned)place, (long long)number);
}

void erb_raise_writer_closed(void) { PyErr_SetString(error_closed, "the writer was closed"); }

/* A place of this process's, or -1 with an error set. */
static int64_t own_place(Table *self, PyObject *object) {
    if (!erb_opened(self)) return -1;
    unsigned long place = PyLong_AsUnsignedLong(object);
    if (PyErr_Occurred()) return -1;
    if (place < self->table->writer_slots && self->table->writers[place].number) return (int64_t)place;
    erb_raise_writer_closed();
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
    return status ? erb_raise(status) : Py_BuildValue("LKL", (long long)row, (unsigned long long)granted, (long long)sequence);
}

static PyObject *table_commit(Table *self, PyObject *object) {
    int64_t place = own_place(self, object);
    if (place < 0) return NULL;
    int status = erb_commit(self->table, (uint32_t)place);
    return status ? erb_raise(status) : Py_NewRef(Py_None);
}

static PyObject *table_mark(Table *self, PyObject *args) {
    PyObject *object;
    unsigned char flags;
    if (!PyArg_ParseTuple(args, "Ob", &object, &flags)) return NULL;
    int64_t place = own_place(self, object);
    if (place < 0) return NULL;
    int status = erb_mark(self->table, (uint32_t)place, flags);
    return status ? erb_raise(status) : Py_NewRef(Py_None);
}

static PyObject *table_recover(Table *self, PyObject *unused) {
    (void)unused;
    uint32_t recovered;
    if (!erb_opened(self)) return NULL;
    int status = erb_recover(self->table, &recovered);
    return status ? erb_raise(status) : PyLong_FromUnsignedLong(recovered);
}

static PyObject *table_max_spans(Table *self, PyObject *unused) {
    (void)unused;
    return erb_opened(self) ? PyLong_FromSize_t(erb_max_spans(self->table)) : NULL;
}

static PyObject *table_snapshot(Table *self, PyObject *object) {
    Py_buffer view;
    size_t room, count;
    if (!erb_opened(self)) return NULL;
    int64_t *spans = numbers(object, &view, &room, 1);
    if (!spans) return NULL;
    int status = room >= 3 * erb_max_spans(self->table) ? erb_snapshot(self->table, (erb_span *)spans, &count) : ERB_OK + 1;
    PyBuffer_Release(&view);
    if (status > 0) return PyErr_Format(PyExc_ValueError, "spans has room for %zu numbers; 3 * max_spans() are required", room);
    return status ? erb_raise(status) : PyLong_FromSize_t(count);
}

/* resolve(spans, count, positions, rows, stamps) */
static PyObject *table_resolve(Table *self, PyObject *const *args, Py_ssize_t given) {
    Py_buffer views[4];
    size_t sizes[4], held = 0, count;
    int64_t *data[4];
    static const int from[4] = {0, 2, 3, 4};
    if (given != 5) return PyErr_Format(PyExc_TypeError, "resolve takes spans, count, positions, rows, stamps");
    if (!erb_opened(self)) return NULL;
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

/* draw(shares, rows, stamps) -> how many rows are held; 0: nothing was drawn */
static PyObject *table_draw(Table *self, PyObject *const *args, Py_ssize_t given) {
    Py_buffer views[3];
    size_t sizes[3], held = 0;
    int64_t *data[3], total = 0;
    if (given != 3) return PyErr_Format(PyExc_TypeError, "draw takes shares, rows, stamps");
    if (!erb_opened(self)) return NULL;
    for (; held < 3; held++)
        if (!(data[held] = numbers(args[held], &views[held], &sizes[held], held > 0))) break;
    int status = ERB_OK + 1;
    if (held == 3 && sizes[1] >= sizes[0] && sizes[2] >= sizes[0])
        status = erb_draw(self->table, (const double *)data[0], sizes[0], data[1], data[2], &total);
    for (size_t i = 0; i < held; i++) PyBuffer_Release(&views[i]);
    if (held < 3) return NULL;
    if (status > 0) return PyErr_Format(PyExc_ValueError, "rows and stamps must be as many as shares");
    return status ? erb_raise(status) : PyLong_FromLongLong(total);
}

/* steps(spans, count) */
static PyObject *table_steps(Table *self, PyObject *const *args, Py_ssize_t given) {
    Py_buffer view;
    size_t size;
    if (given != 2) return PyErr_Format(PyExc_TypeError, "steps takes spans, count");
    size_t count = PyLong_AsSize_t(args[1]);
    if (PyErr_Occurred() || !erb_opened(self)) return NULL;
    int64_t *spans = numbers(args[0], &view, &size, 0);
    if (!spans) return NULL;
    PyObject *steps = count <= size / 3 ? erb_new_steps(self, (const erb_span *)spans, count)
                                        : PyErr_Format(PyExc_ValueError, "spans has %zu numbers; %zu spans have three each", size, count);
    PyBuffer_Release(&view);
    return steps;
}

/* intact(rows, stamps, out) -> how many are not */
static PyObject *table_intact(Table *self, PyObject *const *args, Py_ssize_t given) {
    Py_buffer views[3];
    size_t sizes[3], held = 0, lost = 0;
    int64_t *data[3];
    if (given != 3) return PyErr_Format(PyExc_TypeError, "intact takes rows, stamps, out");
    if (!erb_opened(self)) return NULL;
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
    if (!erb_opened(self)) return NULL;
    int status = erb_count(self->table, &counts);
    if (status) return erb_raise(status);
    return Py_BuildValue("LLLLLL", (long long)counts.inserted, (long long)counts.held, (long long)counts.newest,
                         (long long)counts.sampled, (long long)counts.redrawn, (long long)counts.writers);
}

static PyObject *table_horizon(Table *self, PyObject *unused) {
    (void)unused;
    return erb_opened(self) ? PyLong_FromLongLong(erb_horizon(self->table)) : NULL;
}

static PyObject *table_tally(Table *self, PyObject *args) {
    long long sampled, redrawn;
    if (!erb_opened(self) || !PyArg_ParseTuple(args, "LL", &sampled, &redrawn)) return NULL;
    erb_tally(self->table, sampled, redrawn);
    Py_RETURN_NONE;
}

static PyObject *table_hold(Table *self, PyObject *object) {
    if (!erb_opened(self)) return NULL;
    unsigned long long nanoseconds = PyLong_AsUnsignedLongLong(object);
    if (PyErr_Occurred()) return NULL;
    erb_hold(self->table->header, nanoseconds);
    Py_RETURN_NONE;
}

static PyObject *table_previous(Table *self, PyObject *args) {
    long long row, stamp;
    int64_t previous[3];
    if (!erb_opened(self) || !PyArg_ParseTuple(args, "LL", &row, &stamp)) return NULL;
    int status = erb_previous(self->table, row, stamp, previous);
    return status ? erb_raise(status) : Py_BuildValue("LLL", (long long)previous[0], (long long)previous[1], (long long)previous[2]);
}

/* frames(rows, own, next) */
static PyObject *table_frames(Table *self, PyObject *const *args, Py_ssize_t given) {
    Py_buffer views[3];
    size_t sizes[3], held = 0;
    int64_t *data[3];
    if (given != 3) return PyErr_Format(PyExc_TypeError, "frames takes rows, own, next");
    if (!erb_opened(self)) return NULL;
    for (; held < 3; held++)
        if (!(data[held] = numbers(args[held], &views[held], &sizes[held], held > 0))) break;
    int status = ERB_DAMAGED;
    if (held == 3 && sizes[1] >= sizes[0] * self->table->stack && sizes[2] >= sizes[0] * self->table->stack)
        status = erb_frames(self->table, data[0], sizes[0], data[1], data[2]);
    for (size_t i = 0; i < held; i++) PyBuffer_Release(&views[i]);
    if (held < 3) return NULL;
    if (status) return PyErr_Format(PyExc_IndexError, "rows must be from -1 to %llu, in a buffer that has frames",
                                    (unsigned long long)self->table->capacity - 1);
    Py_RETURN_NONE;
}

static PyObject *table_cursor(Table *self, PyObject *args) {
    uint64_t key[2];
    Py_buffer given;
    int64_t next_id = -1;
    if (!erb_opened(self) || !PyArg_ParseTuple(args, "y*", &given)) return NULL;
    int status = given.len == (Py_ssize_t)sizeof key ? ERB_OK : ERB_OK + 1;
    if (!status) {
        memcpy(key, given.buf, sizeof key);
        status = erb_cursor_read(self->table, key, &next_id);
    }
    PyBuffer_Release(&given);
    if (status > 0) return PyErr_Format(PyExc_ValueError, "the key of a cursor has 16 bytes");
    if (status) return erb_raise(status);
    return next_id < 0 ? Py_NewRef(Py_None) : PyLong_FromLongLong(next_id);
}

static PyObject *table_bind(Table *self, PyObject *args) {
    uint64_t key[2];
    Py_buffer given;
    long long next_id;
    PyObject *object;
    if (!erb_opened(self) || !PyArg_ParseTuple(args, "y*OL", &given, &object, &next_id)) return NULL;
    int64_t place = own_place(self, object);
    int status = given.len == (Py_ssize_t)sizeof key && next_id >= 0 ? ERB_OK : ERB_OK + 1;
    if (place >= 0 && !status) {
        memcpy(key, given.buf, sizeof key);
        status = erb_cursor_bind(self->table, key, (uint32_t)place, next_id);
    }
    PyBuffer_Release(&given);
    if (place < 0) return NULL;
    if (status > 0) return PyErr_Format(PyExc_ValueError, "the key of a cursor has 16 bytes, and an item's id is at least 0");
    if (status == ERB_FULL) return PyErr_Format(error_full, "another writer has this stream of items");
    if (status == ERB_NO_SLOT) return PyErr_Format(error_full, "live writers hold all %llu cursors", (unsigned long long)self->table->cursor_slots);
    return status ? erb_raise(status) : Py_NewRef(Py_None);
}

static PyObject *table_stream(Table *self, PyObject *spec) { return erb_new_stream(self, spec); }

static PyObject *table_total(Table *self, PyObject *object) {
    int64_t place = own_place(self, object);
    return place < 0 ? NULL : PyLong_FromLongLong(self->table->writers[place].total);
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
                                      {"draw", FAST(table_draw), NULL},
                                      {"steps", FAST(table_steps), NULL},
                                      {"intact", FAST(table_intact), NULL},
                                      {"counts", (PyCFunction)table_counts, METH_NOARGS, NULL},
                                      {"horizon", (PyCFunction)table_horizon, METH_NOARGS, NULL},
                                      {"tally", (PyCFunction)table_tally, METH_VARARGS, NULL},
                                      {"hold", (PyCFunction)table_hold, METH_O, NULL},
                                      {"previous", (PyCFunction)table_previous, METH_VARARGS, NULL},
                                      {"frames", FAST(table_frames), NULL},
                                      {"cursor", (PyCFunction)table_cursor, METH_VARARGS, NULL},
                                      {"bind", (PyCFunction)table_bind, METH_VARARGS, NULL},
                                      {"stream", (PyCFunction)table_stream, METH_O, NULL},
                                      {"total", (PyCFunction)table_total, METH_O, NULL},
                                      {NULL, NULL, 0, NULL}};
static PyType_Slot table_slots[] = {{Py_tp_new, table_new}, {Py_tp_dealloc, table_dealloc}, {Py_tp_methods, table_methods}, {0, NULL}};
PyTypeObject *erb_table_type;
static PyType_Spec table_spec = {"edgeml_ipc.data._rows.Table", sizeof(Table), 0, Py_TPFLAGS_DEFAULT, table_slots};

static PyMethodDef module_methods[] = {{"schema_at", rows_schema_at, METH_O, NULL},
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
    erb_table_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &table_spec, NULL);
    if (!error_segment || !error_full || !error_closed || !erb_table_type || PyModule_AddType(module, erb_table_type) < 0) return -1;
    return erb_add_flow(module) || erb_add_steps(module) || eipc_add_kernels(module) ? -1 : erb_add_stream(module);
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};
static struct PyModuleDef module_def = {PyModuleDef_HEAD_INIT, "_rows", NULL, 0, module_methods, module_slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__rows(void) { return PyModuleDef_Init(&module_def); }
