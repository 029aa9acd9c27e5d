/* Tree to parts: see _fast.h. One walk writes the header and the shared part; large arrays and bytes are only pointed to. */
#include "_fast_out.h"

static PyTypeObject *scalar_types[16]; /* numpy's, in the order of fast_dtypes */
static PyObject *host_array;           /* encoder's `_to_host` */
static PyObject *in_python;            /* encoder's `encode_in_python` */

static fast_outcome put_bin(output *out, PyObject *node) {
    char *bytes;
    Py_ssize_t count;
    if (PyBytes_AsStringAndSize(node, &bytes, &count) != 0)
        return FAILED;
    if (count < OWN_PART_BYTES)
        return put_sized(&out->header, bytes, count, 0xc4);
    fast_outcome outcome = put_ext_head(&out->header, EXT_OWN_BYTES, 0);
    return outcome == DONE ? put_part(out, node) : outcome;
}

fast_outcome share(output *out, const void *from, size_t count) {
    out->shares = true;
    size_t padding = -count % ALIGNMENT;
    uint8_t *at = extend(&out->shared, count + padding);
    if (at == NULL)
        return no_memory();
    if (count)
        memcpy(at, from, count);
    memset(at + count, 0, padding);
    return DONE;
}

fast_outcome put_description(buffer *b, uint8_t code, const fast_dtype *dtype, int nd, const npy_intp *dims) {
    char text[32 + 21 * MAX_NDIM];
    size_t used = dtype->name_bytes;
    memcpy(text, dtype->name, used);
    text[used++] = ':';
    for (int i = 0; i < nd; i++) {
        char digits[20];
        int count = 0;
        uint64_t n = (uint64_t)dims[i];
        do {
            digits[count++] = (char)('0' + n % 10);
            n /= 10;
        } while (n);
        if (i)
            text[used++] = ',';
        while (count)
            text[used++] = digits[--count];
    }
    fast_outcome outcome = put_ext_head(b, code, used);
    return outcome == DONE ? put_bytes(b, text, used) : outcome;
}

static fast_outcome put_converted(output *out, PyObject *node);

static fast_outcome put_array(output *out, PyArrayObject *node, bool converted) {
    PyArray_Descr *descr = PyArray_DESCR(node);
    const fast_dtype *dtype = fast_dtype_of(descr->type_num);
    int nd = PyArray_NDIM(node);
    if (dtype == NULL || nd > MAX_NDIM)
        return LEAVE;
    if (descr->byteorder == '>' || !PyArray_IS_C_CONTIGUOUS(node))
        return converted ? LEAVE : put_converted(out, (PyObject *)node);
    npy_intp count = PyArray_SIZE(node);
    size_t bytes = (size_t)count * dtype->item_bytes;
    bool own = bytes >= OWN_PART_BYTES;
    fast_outcome outcome =
        put_description(&out->header, own ? EXT_OWN_ARRAY : EXT_PACKED_ARRAY, dtype, nd, PyArray_DIMS(node));
    if (outcome != DONE)
        return outcome;
    return own ? put_part(out, (PyObject *)node) : share(out, PyArray_DATA(node), bytes);
}

/* Encode what the Python half makes an array of. */
static fast_outcome put_converted(output *out, PyObject *node) {
    PyObject *host = host_array != NULL ? PyObject_CallFunctionObjArgs(host_array, node, NULL) : NULL;
    if (host == NULL) { /* the Python half will say why */
        PyErr_Clear();
        return LEAVE;
    }
    fast_outcome outcome = PyArray_CheckExact(host) ? put_array(out, (PyArrayObject *)host, true) : LEAVE;
    Py_DECREF(host); /* the parts hold it where they need it */
    return outcome;
}

static fast_outcome put_scalar(output *out, PyObject *node, const fast_dtype *dtype) {
    union {
        double aligned[2];
        char bytes[16];
    } value;
    PyArray_ScalarAsCtype(node, &value);
    fast_outcome outcome = put_description(&out->header, EXT_SCALAR, dtype, 0, NULL);
    return outcome == DONE ? share(out, value.bytes, dtype->item_bytes) : outcome;
}

static fast_outcome put_key(output *out, PyObject *key) {
    PyTypeObject *type = Py_TYPE(key);
    if (type == &PyUnicode_Type)
        return put_str(&out->header, key);
    if (type == &PyLong_Type || type == &PyFloat_Type || type == &PyBool_Type || key == Py_None)
        return put_node(out, key, 0);
    char *bytes;
    Py_ssize_t count;
    if (type != &PyBytes_Type || PyBytes_AsStringAndSize(key, &bytes, &count) != 0)
        return LEAVE;
    return put_sized(&out->header, bytes, count, 0xc4); /* keys never become parts */
}

static fast_outcome put_dict(output *out, PyObject *node, int depth) {
    Py_ssize_t count = PyDict_Size(node), seen = 0, position = 0;
    fast_outcome outcome = put_count(&out->header, count, 0x80, 0xde);
    PyObject *key, *value;
    while (outcome == DONE && PyDict_Next(node, &position, &key, &value)) {
        seen++;
        Py_INCREF(key); /* what a JAX array does when it is asked for its bytes is not known here */
        Py_INCREF(value);
        outcome = put_key(out, key);
        if (outcome == DONE)
            outcome = put_node(out, value, depth + 1);
        Py_DECREF(key);
        Py_DECREF(value);
        if (outcome == DONE && PyDict_Size(node) != count)
            outcome = LEAVE;
    }
    return outcome == DONE && seen != count ? LEAVE : outcome;
}

static fast_outcome put_items(output *out, PyObject *node, Py_ssize_t count, int depth) {
    bool list = Py_TYPE(node) == &PyList_Type;
    fast_outcome outcome = put_count(&out->header, count, 0x90, 0xdc);
    for (Py_ssize_t i = 0; outcome == DONE && i < count; i++) {
        PyObject *item = list ? PyList_GetItem(node, i) : PyTuple_GetItem(node, i);
        if (item == NULL) { /* a list that shrank meanwhile */
            PyErr_Clear();
            return LEAVE;
        }
        Py_INCREF(item);
        outcome = put_node(out, item, depth + 1);
        Py_DECREF(item);
    }
    return outcome;
}

fast_outcome close_extension(buffer *b, size_t start, uint8_t code) {
    size_t from = start + EXT_HEAD_BYTES, count = b->used - from;
    b->used = start;
    fast_outcome outcome = put_ext_head(b, code, count); /* at most EXT_HEAD_BYTES */
    if (outcome == DONE) {
        memmove(b->bytes + b->used, b->bytes + from, count);
        b->used += count;
    }
    return outcome;
}

static fast_outcome put_tuple(output *out, PyObject *node, int depth) {
    size_t start = out->header.used;
    if (extend(&out->header, EXT_HEAD_BYTES) == NULL)
        return no_memory();
    fast_outcome outcome = put_items(out, node, PyTuple_Size(node), depth);
    return outcome == DONE ? close_extension(&out->header, start, EXT_TUPLE) : outcome;
}

static fast_outcome put_list(output *out, PyObject *node, int depth) {
    bool rows;
    fast_outcome outcome = put_rows(out, node, depth, &rows);
    return outcome == DONE && !rows ? put_items(out, node, PyList_Size(node), depth) : outcome;
}

const fast_dtype *scalar_dtype(PyTypeObject *type) {
    for (int i = 0; i < fast_dtype_count; i++)
        if (scalar_types[i] == type)
            return &fast_dtypes[i];
    return NULL;
}

/* A node of a type that is not among the frequent ones. */
static fast_outcome put_other(output *out, PyObject *node) {
    const fast_dtype *dtype = scalar_dtype(Py_TYPE(node));
    if (dtype != NULL)
        return put_scalar(out, node, dtype);
    return put_converted(out, node);
}

fast_outcome put_node(output *out, PyObject *node, int depth) {
    PyTypeObject *type = Py_TYPE(node);
    if (PyArray_CheckExact(node))
        return put_array(out, (PyArrayObject *)node, false);
    if (type == &PyUnicode_Type)
        return put_str(&out->header, node);
    if (type == &PyFloat_Type)
        return put_float(&out->header, node);
    if (type == &PyBool_Type)
        return put(&out->header, node == Py_True ? 0xc3 : 0xc2, 0, 0);
    if (type == &PyLong_Type)
        return put_int(&out->header, node);
    if (node == Py_None)
        return put(&out->header, 0xc0, 0, 0);
    if (type == &PyBytes_Type)
        return put_bin(out, node);
    bool dict = type == &PyDict_Type, list = type == &PyList_Type, tuple = type == &PyTuple_Type;
    if (!dict && !list && !tuple)
        return put_other(out, node);
    if (depth > MAX_DEPTH)
        return LEAVE;
    if (dict)
        return put_dict(out, node, depth);
    return list ? put_list(out, node, depth) : put_tuple(out, node, depth);
}

/* Put the header first and the shared part last. */
static fast_outcome finish(output *out) {
    PyObject *header = PyBytes_FromStringAndSize((const char *)out->header.bytes, (Py_ssize_t)out->header.used);
    if (header == NULL || PyList_SetItem(out->parts, 0, header) != 0)
        return FAILED;
    if (out->shares) {
        PyObject *shared = PyBytes_FromStringAndSize((const char *)out->shared.bytes, (Py_ssize_t)out->shared.used);
        int failed = shared == NULL || PyList_Append(out->parts, shared) != 0;
        Py_XDECREF(shared);
        if (failed)
            return FAILED;
    }
    return PyList_Size(out->parts) <= MAX_PARTS ? DONE : LEAVE;
}

PyObject *fast_try_encode(PyObject *module, PyObject *tree) {
    (void)module;
    output out;
    out.shares = false;
    out.cells_left = MAX_CELLS;
    out.parts = PyList_New(1);
    if (out.parts == NULL)
        return NULL;
    Py_INCREF(Py_None);
    PyList_SetItem(out.parts, 0, Py_None);
    buffer_open(&out.header);
    buffer_open(&out.shared);
    fast_outcome outcome = put_node(&out, tree, 1);
    if (outcome == DONE)
        outcome = finish(&out);
    buffer_close(&out.header);
    buffer_close(&out.shared);
    if (outcome == DONE)
        return out.parts;
    Py_DECREF(out.parts);
    if (outcome == FAILED)
        return NULL;
    Py_RETURN_NOTIMPLEMENTED;
}

PyObject *fast_encode(PyObject *module, PyObject *tree) {
    PyObject *parts = fast_try_encode(module, tree);
    if (parts != Py_NotImplemented)
        return parts;
    Py_DECREF(parts);
    return PyObject_CallFunctionObjArgs(in_python, tree, NULL);
}

PyObject *fast_prepare_encode(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *to_host, *python;
    if (!PyArg_ParseTuple(args, "OO:prepare_encode", &to_host, &python))
        return NULL;
    for (int i = 0; i < fast_dtype_count; i++) {
        PyArray_Descr *descr = PyArray_DescrFromType(fast_dtypes[i].type_number);
        if (descr == NULL)
            return NULL;
        scalar_types[i] = descr->typeobj; /* numpy's own types live as long as the process */
        Py_DECREF(descr);
    }
    fast_keep(&host_array, to_host);
    fast_keep(&in_python, python);
    Py_RETURN_NONE;
}
