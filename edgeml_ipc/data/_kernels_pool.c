/* Pool and Block: memory of batches that goes round. */
#include "_kernels_binding.h"

#include <stdlib.h>
#include <string.h>

PyTypeObject *eipc_block_type, *eipc_pool_type;

static void free_type_and(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static void block_dealloc(eipc_block *self) {
    eipc_pool *pool = self->pool;
    if (self->data) {
        if (pool->count == pool->limit && pool->limit > 0) { /* the oldest of the idle ones gives way: sizes may have changed */
            free(pool->idle[0].data);
            memmove(pool->idle, pool->idle + 1, (size_t)--pool->count * sizeof *pool->idle);
        }
        if (pool->count < pool->limit) pool->idle[pool->count++] = (eipc_idle){self->data, self->room};
        else free(self->data);
    }
    Py_DECREF((PyObject *)pool);
    free_type_and((PyObject *)self);
}

static int block_getbuffer(eipc_block *self, Py_buffer *view, int flags) {
    return PyBuffer_FillInfo(view, (PyObject *)self, self->data, (Py_ssize_t)self->size, 0, flags);
}

eipc_block *eipc_take_block(eipc_pool *pool, uint64_t size) {
    eipc_block *block = PyObject_New(eipc_block, eipc_block_type);
    if (!block) return NULL;
    Py_INCREF((PyObject *)pool);
    block->pool = pool;
    block->data = NULL;
    block->size = size;
    for (Py_ssize_t i = pool->count; i-- > 0;) {
        if (pool->idle[i].size < size || pool->idle[i].size / 2 > size + 4096) continue;
        block->data = pool->idle[i].data;
        block->room = pool->idle[i].size;
        memmove(pool->idle + i, pool->idle + i + 1, (size_t)(--pool->count - i) * sizeof *pool->idle);
        pool->reused++;
        return block;
    }
    block->room = (size + EIPC_ALIGN) & ~(uint64_t)(EIPC_ALIGN - 1); /* at least one line, also for nothing */
    block->data = aligned_alloc(EIPC_ALIGN, block->room);
    if (!block->data) {
        Py_DECREF((PyObject *)block);
        PyErr_NoMemory();
        return NULL;
    }
    pool->allocated++;
    return block;
}

static PyObject *pool_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"idle_blocks", NULL};
    Py_ssize_t limit;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "n", names, &limit)) return NULL;
    if (limit < 0 || limit > EIPC_MAX_IDLE)
        return PyErr_Format(PyExc_ValueError, "idle_blocks must be from 0 to %d, got %zd", EIPC_MAX_IDLE, limit);
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    eipc_pool *self = (eipc_pool *)allocate(type, 0);
    if (self) self->limit = limit;
    return (PyObject *)self;
}

static void pool_dealloc(eipc_pool *self) {
    for (Py_ssize_t i = 0; i < self->count; i++) free(self->idle[i].data);
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *pool_stats(eipc_pool *self, PyObject *Py_UNUSED(ignored)) {
    return Py_BuildValue("{s:K,s:K,s:n}", "blocks_allocated", (unsigned long long)self->allocated, "blocks_reused",
                         (unsigned long long)self->reused, "blocks_idle", self->count);
}

static PyType_Slot block_slots[] = {
    {Py_tp_doc, "Writable memory of a batch; goes back to its pool when the last array on it dies."},
    {Py_tp_dealloc, block_dealloc},
    {Py_bf_getbuffer, block_getbuffer},
    {0, NULL},
};
static PyType_Spec block_spec = {"edgeml_ipc.data._rows.Block", sizeof(eipc_block), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, block_slots};

static PyMethodDef pool_methods[] = {
    {"stats", (PyCFunction)pool_stats, METH_NOARGS, "Return counters."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot pool_slots[] = {
    {Py_tp_doc, "Pool(idle_blocks): keeps so many blocks for the next batches."},
    {Py_tp_new, pool_new},
    {Py_tp_dealloc, pool_dealloc},
    {Py_tp_methods, pool_methods},
    {0, NULL},
};
static PyType_Spec pool_spec = {"edgeml_ipc.data._rows.Pool", sizeof(eipc_pool), 0, Py_TPFLAGS_DEFAULT, pool_slots};

int eipc_add_pool_types(PyObject *module) {
    if (eipc_add_type(module, &block_spec, &eipc_block_type) < 0) return -1;
    return eipc_add_type(module, &pool_spec, &eipc_pool_type);
}
