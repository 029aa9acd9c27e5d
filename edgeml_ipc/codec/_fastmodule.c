/* The module of the codec's compiled half: its functions, and how arrays are described. See _fast.h. */
#define EDGEML_IPC_CODEC_MODULE
#include "_fast.h"

#define DTYPE(name, number, bytes) {name, number, sizeof name - 1, bytes}

const fast_dtype fast_dtypes[] = {
    DTYPE("bool", NPY_BOOL, 1),
    DTYPE("int8", NPY_INT8, 1),
    DTYPE("int16", NPY_INT16, 2),
    DTYPE("int32", NPY_INT32, 4),
    DTYPE("int64", NPY_INT64, 8),
    DTYPE("uint8", NPY_UINT8, 1),
    DTYPE("uint16", NPY_UINT16, 2),
    DTYPE("uint32", NPY_UINT32, 4),
    DTYPE("uint64", NPY_UINT64, 8),
    DTYPE("float16", NPY_FLOAT16, 2),
    DTYPE("float32", NPY_FLOAT32, 4),
    DTYPE("float64", NPY_FLOAT64, 8),
    DTYPE("complex64", NPY_COMPLEX64, 8),
    DTYPE("complex128", NPY_COMPLEX128, 16),
};
const int fast_dtype_count = sizeof fast_dtypes / sizeof *fast_dtypes;

const fast_dtype *fast_dtype_of(int type_number) {
    for (int i = 0; i < fast_dtype_count; i++)
        if (fast_dtypes[i].type_number == type_number)
            return &fast_dtypes[i];
    return NULL; /* also `long long`, which numpy tells apart from int64 */
}

bool fast_describe(const uint8_t *text, size_t count, fast_description *d) {
    const uint8_t *colon = memchr(text, ':', count), *end = text + count;
    if (colon == NULL)
        return false;
    d->dtype = NULL;
    for (int i = 0; i < fast_dtype_count; i++)
        if (fast_dtypes[i].name_bytes == colon - text && memcmp(fast_dtypes[i].name, text, (size_t)(colon - text)) == 0)
            d->dtype = &fast_dtypes[i];
    if (d->dtype == NULL)
        return false;
    d->nd = 0;
    uint64_t bytes = d->dtype->item_bytes;
    for (const uint8_t *at = colon + 1; at < end; at++) { /* at the first digit of a dimension */
        uint64_t n = 0;
        const uint8_t *first = at;
        for (; at < end && *at >= '0' && *at <= '9'; at++)
            if (at - first >= 15) /* far beyond any memory, and no product overflows unseen */
                return false;
            else
                n = n * 10 + (uint64_t)(*at - '0');
        if (at == first || d->nd == MAX_NDIM || (at < end && (*at != ',' || at + 1 == end)))
            return false;
        if (__builtin_mul_overflow(bytes, n, &bytes) || bytes > PTRDIFF_MAX)
            return false;
        d->dims[d->nd++] = (npy_intp)n;
    }
    d->bytes = (size_t)bytes;
    return true;
}

#define FAST(function) (PyCFunction)(void (*)(void))function, METH_FASTCALL

static PyMethodDef methods[] = {
    {"encode", fast_encode, METH_O, NULL},
    {"try_encode", fast_try_encode, METH_O, NULL},
    {"prepare_encode", fast_prepare_encode, METH_VARARGS, NULL},
    {"decode", FAST(fast_decode), NULL},
    {"try_decode", FAST(fast_try_decode), NULL},
    {"prepare_decode", fast_prepare_decode, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_fast", "The compiled half of the codec; see _fast.pyi.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__fast(void) {
    import_array();
    return PyModule_Create(&definition);
}
