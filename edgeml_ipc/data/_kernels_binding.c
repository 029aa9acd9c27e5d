/* What the bindings of kernels.h share. */
#include "_kernels_binding.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static bool is_int64(const Py_buffer *b) {
    return b->itemsize == 8 && b->format && b->format[0] && !b->format[1] && strchr("lq", b->format[0]);
}

/* Copy an array of int64, and check that all are in [lowest, end). Returns NULL with an error set. */
int64_t *eipc_copied_rows(PyObject *object, const char *name, int64_t lowest, int64_t end, size_t *count) {
    Py_buffer b;
    if (PyObject_GetBuffer(object, &b, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) return NULL;
    int64_t *copy = NULL;
    if (!is_int64(&b)) {
        PyErr_Format(PyExc_TypeError, "%s must be a contiguous array of int64, got format '%s'", name, b.format ? b.format : "");
    } else {
        *count = (size_t)b.len / 8;
        copy = malloc((size_t)b.len + 8);
        size_t good = copy ? eipc_copy_rows(copy, b.buf, *count, lowest, end) : 0;
        if (!copy) {
            PyErr_NoMemory();
        } else if (good < *count) {
            PyErr_Format(PyExc_IndexError, "%s[%zu] is %lld; it must be from %lld to %lld", name, good, (long long)copy[good],
                         (long long)lowest, (long long)end - 1);
            free(copy);
            copy = NULL;
        }
    }
    PyBuffer_Release(&b);
    return copy;
}

int eipc_add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **type) {
    *type = (PyTypeObject *)PyType_FromSpec(spec);
    return *type ? PyModule_AddType(module, *type) : -1;
}

int eipc_add_kernels(PyObject *module) {
    return eipc_add_pool_types(module) || eipc_add_gather_type(module) || eipc_add_tree_type(module) ? -1 : 0;
}
