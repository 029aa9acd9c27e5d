/* What the files that bind kernels.h share: a thin binding on Python's limited API
 * that checks everything, and only then lets other threads run. */
#ifndef EIPC_KERNELS_BINDING_H
#define EIPC_KERNELS_BINDING_H

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>

#include "kernels.h"

/* Copy an array of int64, and check that all are in [lowest, end). To be freed by free(); NULL with an error set. */
int64_t *eipc_copied_rows(PyObject *object, const char *name, int64_t lowest, int64_t end, size_t *count);

/* Make a type and put it into the module; 0, or -1 with an error set. */
int eipc_add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **type);

enum { EIPC_MAX_IDLE = 64 };

typedef struct {
    void *data;
    uint64_t size;
} eipc_idle;

typedef struct {
    PyObject_HEAD
    eipc_idle idle[EIPC_MAX_IDLE]; /* guarded by the interpreter lock, as all of this type */
    Py_ssize_t count, limit;
    uint64_t allocated, reused;
} eipc_pool;

/* Writable memory, aligned to EIPC_ALIGN. Arrays on it keep it alive; when the last one dies it goes back to its pool. */
typedef struct {
    PyObject_HEAD
    eipc_pool *pool;
    void *data;
    uint64_t room; /* what was allocated */
    uint64_t size; /* what is used now */
} eipc_block;

extern PyTypeObject *eipc_block_type, *eipc_pool_type;

/* Take the newest idle block that has room and is not much too large, or allocate one; NULL with an error set. */
eipc_block *eipc_take_block(eipc_pool *pool, uint64_t size);

/* ---- Gather -------------------------------------------------------------------------------------------------------- */

typedef struct {
    Py_buffer buffer;
    size_t which; /* of the sets of rows that a call brings */
} eipc_column;

typedef struct {
    PyObject_HEAD
    eipc_column *columns;
    size_t count, sets;
    unsigned threads;
    unsigned running; /* calls under way: while there are any, the columns stay */
    bool closed;
} eipc_gatherer;

/* One set of rows: a copy that nobody else can change. `at`: NULL, or where in the batch each goes. */
typedef struct {
    int64_t *rows, *at;
    size_t count;
} eipc_row_set;

/* What a call needs beside the sets. */
typedef struct {
    size_t *counts; /* by set */
    uint64_t *offsets; /* by column */
    eipc_gather_part *parts;
} eipc_scratch;

extern PyTypeObject *eipc_gather_type;

int eipc_begin_call(eipc_gatherer *self, eipc_scratch *scratch);
void eipc_end_call(eipc_gatherer *self, eipc_scratch *scratch);
/* Say where each column begins in a block, and how large the block is. */
int eipc_lay_out(const eipc_gatherer *self, const size_t *counts, uint64_t *offsets, uint64_t *size);
/* Copy rows that were checked; other threads run meanwhile if there are many. */
void eipc_copy_all(eipc_gatherer *self, const eipc_row_set *sets, const uint64_t *offsets, eipc_block *block, eipc_gather_part *parts);
PyObject *eipc_offsets(const uint64_t *offsets, size_t count); /* a tuple */
PyObject *eipc_gather_draw(PyObject *self, PyObject *const *args, Py_ssize_t given);
PyObject *eipc_gather_take(PyObject *self, PyObject *const *args, Py_ssize_t given);

int eipc_add_kernels(PyObject *module);
int eipc_add_pool_types(PyObject *module);
int eipc_add_gather_type(PyObject *module);
int eipc_add_tree_type(PyObject *module);

#endif
