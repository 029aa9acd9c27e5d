/* numpy arrays, looked at where they lie. The buffer protocol makes and compares descriptions of an array at each call, which takes
 * longer than copying a small one; and numpy's own headers would tie this build to a version of numpy. What is here are the fields
 * that are part of numpy's binary interface and have been the same since 1.7: PyArrayObject_fields in ndarraytypes.h. Before they
 * are relied on they are compared with what the buffer protocol says; where they differ, all arrays go by the buffer protocol. */
#ifndef EDGEML_IPC_ROWS_ARRAY_H
#define EDGEML_IPC_ROWS_ARRAY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>

#define ERB_ARRAY_PACKED 1 /* NPY_ARRAY_C_CONTIGUOUS */

typedef struct {
    PyObject_HEAD
    uint8_t *data;
    int dims;
    Py_ssize_t *shape, *strides;
    PyObject *base, *dtype;
    int flags;
} erb_array;

static inline const erb_array *erb_array_of(PyObject *array) { return (const erb_array *)(void *)array; }

/* `array` has three rows of two; `turned` is the same the other way round. False, maybe with an error set: they look different. */
static bool erb_array_is_as_known(PyTypeObject *type, PyObject *array, PyObject *turned) {
    PyObject *size = PyObject_GetAttrString((PyObject *)type, "__basicsize__"), *dtype = PyObject_GetAttrString(array, "dtype");
    bool is_known = size && dtype && PyLong_AsSsize_t(size) >= (Py_ssize_t)sizeof(erb_array) && Py_TYPE(array) == type && Py_TYPE(turned) == type;
    Py_buffer view;
    if (is_known && PyObject_GetBuffer(turned, &view, PyBUF_RECORDS_RO) == 0) {
        const erb_array *a = erb_array_of(array), *t = erb_array_of(turned);
        is_known = a->data == view.buf && t->data == view.buf && a->dims == 2 && t->dims == 2 && a->dtype == dtype && t->dtype == dtype &&
                   t->base == array && (a->flags & ERB_ARRAY_PACKED) && !(t->flags & ERB_ARRAY_PACKED) && a->shape[0] == 3 && a->shape[1] == 2 &&
                   t->shape[0] == 2 && t->shape[1] == 3 && t->strides[0] == view.strides[0] && t->strides[1] == view.strides[1];
        PyBuffer_Release(&view);
    } else {
        is_known = false;
    }
    Py_XDECREF(size);
    Py_XDECREF(dtype);
    return is_known;
}

#endif
