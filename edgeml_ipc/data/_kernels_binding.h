/* What the files of the extension module edgeml_ipc.data._kernels share: a thin binding of kernels.h on Python's limited API
 * that checks everything, and only then lets other threads run. */
#ifndef EIPC_KERNELS_BINDING_H
#define EIPC_KERNELS_BINDING_H

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

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

int eipc_add_pool_types(PyObject *module);
int eipc_add_gather_type(PyObject *module);
int eipc_add_tree_type(PyObject *module);

#endif
