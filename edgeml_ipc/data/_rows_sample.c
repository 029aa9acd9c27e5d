/* One call for a batch of rows: draw them, find their frames, copy, and look whether they still stand. */
#include "_kernels_binding.h"
#include "_rows_binding.h"

#include <stdlib.h>
#include <string.h>

enum { IN_ROW, OWN, NEXT }; /* what columns of a set follow, as in reading.py */

typedef struct {
    int64_t *rows, *stamps;
    uint8_t *whole;
    size_t count;
    int64_t *frames; /* own, next, then the newest of each, as far as needed */
} Batch;

/* The rows or frames of one set; `stacked`: all frames of an observation. */
static eipc_row_set set_of(const erb_table *table, const Batch *batch, long part, bool stacked) {
    size_t n = batch->count, all = n * table->stack;
    if (part == IN_ROW) return (eipc_row_set){batch->rows, NULL, n};
    int64_t *frames = batch->frames + (part == NEXT ? all : 0);
    if (stacked || table->stack == 1) return (eipc_row_set){frames, NULL, all};
    int64_t *newest = batch->frames + 2 * all + (part == NEXT ? n : 0);
    for (size_t i = 0; i < n; i++) newest[i] = frames[i * table->stack + table->stack - 1];
    return (eipc_row_set){newest, NULL, n};
}

/* parts: for each set what it follows, plus 4 if it is stacked. */
static int sets_from(const erb_table *table, const eipc_gatherer *gather, PyObject *parts, Batch *batch, eipc_row_set *sets) {
    bool framed = false;
    for (size_t s = 0; s < gather->sets; s++) framed |= (PyLong_AsLong(PyTuple_GetItem(parts, (Py_ssize_t)s)) & 3) != IN_ROW;
    if (framed) {
        batch->frames = malloc(2 * batch->count * (table->stack + 1) * sizeof *batch->frames);
        if (!batch->frames) return PyErr_NoMemory(), -1;
        int status = erb_frames(table, batch->rows, batch->count, batch->frames, batch->frames + batch->count * table->stack);
        if (status) return erb_raise(status), -1;
    }
    for (size_t s = 0; s < gather->sets; s++) {
        long part = PyLong_AsLong(PyTuple_GetItem(parts, (Py_ssize_t)s));
        if (PyErr_Occurred() || part < 0) return erb_raise(ERB_DAMAGED), -1;
        sets[s] = set_of(table, batch, part & 3, part & 4);
    }
    for (size_t i = 0; i < gather->count; i++) { /* nothing is copied from outside its column, whatever the segment says */
        const eipc_row_set *set = &sets[gather->columns[i].which];
        for (size_t k = 0; k < set->count; k++)
            if (set->rows[k] < 0 || set->rows[k] >= (int64_t)gather->columns[i].buffer.shape[0]) return erb_raise(ERB_DAMAGED), -1;
    }
    return 0;
}

static PyObject *places_lost(const Batch *batch, size_t lost) {
    PyObject *places = PyTuple_New((Py_ssize_t)lost);
    for (size_t i = 0, at = 0; places && i < batch->count && at < lost; i++) {
        if (batch->whole[i]) continue;
        PyObject *place = PyLong_FromSize_t(i);
        if (!place || PyTuple_SetItem(places, (Py_ssize_t)at++, place) < 0) Py_CLEAR(places);
    }
    return places;
}

static PyObject *copied(eipc_gatherer *gather, Table *self, PyObject *parts, Batch *batch, eipc_pool *pool) {
    eipc_scratch scratch;
    eipc_block *block = NULL;
    PyObject *offsets = NULL;
    uint64_t size;
    size_t lost, columns = gather->count;
    eipc_row_set *sets = malloc(gather->sets * sizeof *sets);
    if (!sets) return PyErr_NoMemory();
    if (eipc_begin_call(gather, &scratch) == 0) {
        if (sets_from(self->table, gather, parts, batch, sets) == 0) {
            for (size_t s = 0; s < gather->sets; s++) scratch.counts[s] = sets[s].count;
            if (eipc_lay_out(gather, scratch.counts, scratch.offsets, &size) == 0) block = eipc_take_block(pool, size);
            if (block) {
                eipc_copy_all(gather, sets, scratch.offsets, block, scratch.parts);
                offsets = eipc_offsets(scratch.offsets, columns);
            }
        }
        eipc_end_call(gather, &scratch);
    }
    free(sets);
    PyObject *result = NULL;
    if (offsets && erb_opened(self)) { /* else closed while other threads ran */
        int status = erb_intact(self->table, batch->rows, batch->stamps, batch->count, batch->whole, &lost);
        PyObject *places = status ? erb_raise(status) : places_lost(batch, lost);
        if (places) result = PyTuple_Pack(3, (PyObject *)block, offsets, places);
        Py_XDECREF(places);
    }
    Py_XDECREF(offsets);
    Py_XDECREF((PyObject *)block);
    return result;
}

/* A call's arguments table, parts and pool, the first two and the last: checked. */
static Table *checked(const eipc_gatherer *gather, PyObject *table, PyObject *parts, PyObject *pool) {
    if (!PyObject_TypeCheck(table, erb_table_type) || !PyTuple_Check(parts) || !PyObject_TypeCheck(pool, eipc_pool_type)) {
        PyErr_SetString(PyExc_TypeError, "a table, parts, then rows or shares, then a pool are required");
        return NULL;
    }
    if (!erb_opened((Table *)table)) return NULL;
    if (!gather->closed && PyTuple_Size(parts) == (Py_ssize_t)gather->sets) return (Table *)table;
    PyErr_Format(PyExc_ValueError, "this gather was closed, or has %zu sets of rows", gather->sets);
    return NULL;
}

static int begin_batch(Batch *batch, size_t n) {
    *batch = (Batch){malloc((2 * n + 1) * sizeof *batch->rows + n), NULL, NULL, n, NULL};
    if (!batch->rows) return PyErr_NoMemory(), -1;
    batch->stamps = batch->rows + n;
    batch->whole = (uint8_t *)(batch->stamps + n);
    return 0;
}

static void end_batch(Batch *batch) {
    free(batch->frames);
    free(batch->rows);
}

/* draw(table, parts, shares, pool) -> (block, offsets, places of the rows that are not whole), or None: no row is held */
PyObject *eipc_gather_draw(PyObject *object, PyObject *const *args, Py_ssize_t given) {
    eipc_gatherer *gather = (eipc_gatherer *)object;
    if (given != 4) return PyErr_Format(PyExc_TypeError, "draw takes 4 arguments, got %zd", given);
    Table *table = checked(gather, args[0], args[1], args[3]);
    Py_buffer shares;
    Batch batch;
    PyObject *result = NULL;
    if (!table || PyObject_GetBuffer(args[2], &shares, PyBUF_C_CONTIGUOUS) < 0) return NULL;
    if (begin_batch(&batch, (size_t)shares.len / sizeof(double)) == 0) {
        int64_t total = 0;
        int status = erb_draw(table->table, shares.buf, batch.count, batch.rows, batch.stamps, &total);
        if (status) erb_raise(status);
        else if (total == 0) result = Py_NewRef(Py_None);
        else result = copied(gather, table, args[1], &batch, (eipc_pool *)args[3]);
        end_batch(&batch);
    }
    PyBuffer_Release(&shares);
    return result;
}

/* take(table, parts, rows, stamps, pool) -> as draw, of rows that were drawn before */
PyObject *eipc_gather_take(PyObject *object, PyObject *const *args, Py_ssize_t given) {
    eipc_gatherer *gather = (eipc_gatherer *)object;
    if (given != 5) return PyErr_Format(PyExc_TypeError, "take takes 5 arguments, got %zd", given);
    Table *table = checked(gather, args[0], args[1], args[4]);
    size_t n = 0, stamps = 0;
    Batch batch;
    PyObject *result = NULL;
    int64_t *rows = table ? eipc_copied_rows(args[2], "rows", 0, (int64_t)table->table->capacity, &n) : NULL;
    int64_t *known = rows ? eipc_copied_rows(args[3], "stamps", 0, INT64_MAX, &stamps) : NULL;
    if (known && n != stamps) PyErr_Format(PyExc_ValueError, "there are %zu rows and %zu stamps", n, stamps);
    if (known && n == stamps && begin_batch(&batch, n) == 0) {
        memcpy(batch.rows, rows, n * sizeof *rows);
        memcpy(batch.stamps, known, n * sizeof *known);
        result = copied(gather, table, args[1], &batch, (eipc_pool *)args[4]);
        end_batch(&batch);
    }
    free(rows);
    free(known);
    return result;
}
