/* Parts to tree: see _fast.h. What arrives is not trusted: each size is checked before anything of that size is made. */
#include "_fast_in.h"

#include <stdlib.h>

enum { KNOWN_KEYS = 1024, KNOWN_KEY_BYTES = 32, COPY_UNLOCKED_BYTES = 32 << 10 };

static PyObject *in_python; /* decoder's `decode_in_python` */

static bool take(input *in, size_t count, const uint8_t **from) {
    if ((size_t)(in->end - in->at) < count)
        return false;
    *from = in->at;
    in->at += count;
    return true;
}

static bool take_number(input *in, int bytes, uint64_t *number) {
    const uint8_t *from;
    if (!take(in, (size_t)bytes, &from))
        return false;
    *number = 0;
    for (int i = 0; i < bytes; i++)
        *number = *number << 8 | from[i];
    return true;
}

/* Strings that come again in every message: the keys of dicts. Each slot holds the newest of its hash. */
static struct known_key {
    PyObject *text;
    uint8_t count;
    char bytes[KNOWN_KEY_BYTES];
} known_keys[KNOWN_KEYS];

static PyObject *text_of(input *in, const uint8_t *bytes, size_t count) {
    return made(in, PyUnicode_DecodeUTF8((const char *)bytes, (Py_ssize_t)count, "strict"));
}

static PyObject *key_text(input *in, const uint8_t *bytes, size_t count) {
    if (count > KNOWN_KEY_BYTES)
        return text_of(in, bytes, count);
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < count; i++)
        hash = (hash ^ bytes[i]) * 16777619u;
    struct known_key *known = &known_keys[(hash ^ hash >> 16) % KNOWN_KEYS];
    if (known->text == NULL || known->count != count || memcmp(known->bytes, bytes, count) != 0) {
        PyObject *text = text_of(in, bytes, count);
        if (text == NULL)
            return NULL;
        Py_XDECREF(known->text);
        known->text = text;
        known->count = (uint8_t)count;
        memcpy(known->bytes, bytes, count);
    }
    Py_INCREF(known->text);
    return known->text;
}

/* Find the memory of a part and return what keeps it there: the bytes themselves, or a read-only memoryview, so that nobody
 * can make arrays on it writable again. */
static PyObject *open_part(input *in, PyObject *part, const uint8_t **bytes, size_t *count) {
    Py_buffer view;
    if (PyBytes_CheckExact(part)) {
        char *start;
        Py_ssize_t size;
        if (PyBytes_AsStringAndSize(part, &start, &size) != 0)
            return fail(in);
        *bytes = (const uint8_t *)start;
        *count = (size_t)size;
        Py_INCREF(part);
        return part;
    }
    PyObject *holder = PyMemoryView_FromObject(part);
    if (holder != NULL && PyObject_GetBuffer(holder, &view, PyBUF_SIMPLE) == 0) {
        bool readonly = view.readonly;
        *bytes = view.buf;
        *count = (size_t)view.len;
        PyBuffer_Release(&view); /* the memoryview itself goes on holding it */
        if (readonly)
            return holder;
        PyObject *sealed = PyObject_CallMethod(holder, "toreadonly", NULL);
        Py_DECREF(holder);
        return made(in, sealed);
    }
    Py_XDECREF(holder);
    return fail(in);
}

/* Return a part, borrowed from the list or tuple of them. */
static PyObject *part_at(input *in, Py_ssize_t index) {
    if (index >= in->part_count)
        return NULL;
    PyObject *part = PyList_CheckExact(in->parts) ? PyList_GetItem(in->parts, index) : PyTuple_GetItem(in->parts, index);
    return made(in, part); /* NULL if another thread has shortened the list */
}

static bool open_shared(input *in) {
    if (in->shared == NULL && in->next_part < in->part_count) {
        PyObject *part = part_at(in, in->part_count - 1);
        in->shared = part != NULL ? open_part(in, part, &in->shared_bytes, &in->shared_size) : NULL;
    }
    return in->shared != NULL;
}

PyObject *array_on(input *in, const fast_description *d, const uint8_t *bytes, PyObject *holder) {
    PyArray_Descr *descr = PyArray_DescrFromType(d->dtype->type_number);
    if (descr == NULL)
        return fail(in);
    void *data = in->copy ? NULL : (void *)bytes;
    int flags = in->copy ? 0 : NPY_ARRAY_C_CONTIGUOUS; /* without NPY_ARRAY_WRITEABLE */
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, descr, d->nd, (npy_intp *)d->dims, NULL, data, flags, NULL);
    if (array == NULL)
        return fail(in);
    if (in->copy) {
        void *to = PyArray_DATA((PyArrayObject *)array);
        if (d->bytes >= COPY_UNLOCKED_BYTES) {
            Py_BEGIN_ALLOW_THREADS
            memcpy(to, bytes, d->bytes);
            Py_END_ALLOW_THREADS
        } else if (d->bytes)
            memcpy(to, bytes, d->bytes);
        return array;
    }
    Py_INCREF(holder);
    if (PyArray_SetBaseObject((PyArrayObject *)array, holder) != 0) {
        Py_DECREF(array);
        return fail(in);
    }
    PyArray_UpdateFlags((PyArrayObject *)array, NPY_ARRAY_ALIGNED);
    return array;
}

/* A small array or a numpy scalar: the next bytes of the shared part. */
static PyObject *packed(input *in, bool scalar, const uint8_t *text, size_t count) {
    fast_description d;
    if (!open_shared(in) || !fast_describe(text, count, &d) || (scalar && d.nd != 0))
        return NULL;
    size_t left = in->shared_size - in->shared_used;
    if (d.bytes > left || left - d.bytes < -d.bytes % ALIGNMENT)
        return NULL;
    const uint8_t *bytes = in->shared_bytes + in->shared_used;
    in->shared_used += d.bytes + -d.bytes % ALIGNMENT;
    if (!scalar)
        return array_on(in, &d, bytes, in->shared);
    PyArray_Descr *descr = PyArray_DescrFromType(d.dtype->type_number);
    if (descr == NULL)
        return fail(in);
    uint64_t aligned[2] = {0, 0};
    memcpy(aligned, bytes, d.bytes);
    PyObject *value = PyArray_Scalar(aligned, descr, NULL);
    Py_DECREF(descr);
    return made(in, value);
}

static PyObject *take_part(input *in) {
    return part_at(in, in->next_part++);
}

static PyObject *own_array(input *in, const uint8_t *text, size_t count) {
    fast_description d;
    const uint8_t *bytes;
    size_t size;
    PyObject *part = fast_describe(text, count, &d) ? take_part(in) : NULL;
    PyObject *holder = part != NULL ? open_part(in, part, &bytes, &size) : NULL;
    if (holder == NULL)
        return NULL;
    PyObject *array = size == d.bytes ? array_on(in, &d, bytes, holder) : NULL;
    Py_DECREF(holder);
    return array;
}

static PyObject *own_bytes(input *in) {
    const uint8_t *bytes;
    size_t size;
    PyObject *part = take_part(in), *holder = part != NULL ? open_part(in, part, &bytes, &size) : NULL;
    if (holder == NULL || holder == part) /* bytes as they are */
        return holder;
    PyObject *copied = PyBytes_FromStringAndSize((const char *)bytes, (Py_ssize_t)size);
    Py_DECREF(holder);
    return made(in, copied);
}

PyObject *sequence(input *in, uint64_t count, int depth, bool tuple) {
    if (depth > MAX_DEPTH || count > (uint64_t)(in->end - in->at)) /* an item is a byte at least */
        return NULL;
    PyObject *items = made(in, tuple ? PyTuple_New((Py_ssize_t)count) : PyList_New((Py_ssize_t)count));
    for (uint64_t i = 0; items != NULL && i < count; i++) {
        PyObject *item = node(in, depth + 1, false);
        if (item == NULL) {
            Py_CLEAR(items);
        } else if (tuple) {
            PyTuple_SetItem(items, (Py_ssize_t)i, item);
        } else {
            PyList_SetItem(items, (Py_ssize_t)i, item);
        }
    }
    return items;
}

static PyObject *mapping(input *in, uint64_t count, int depth) {
    if (depth > MAX_DEPTH)
        return NULL;
    PyObject *items = made(in, PyDict_New());
    for (uint64_t i = 0; items != NULL && i < count; i++) {
        PyObject *name = node(in, depth + 1, true), *value = name != NULL ? node(in, depth + 1, false) : NULL;
        int status = value != NULL ? PyDict_SetItem(items, name, value) : 1;
        if (status < 0)
            fail(in);
        if (status != 0)
            Py_CLEAR(items);
        Py_XDECREF(name);
        Py_XDECREF(value);
    }
    return items;
}

static PyObject *extension(input *in, uint64_t count, int depth) {
    const uint8_t *code, *data;
    if (!take(in, 1, &code) || !take(in, (size_t)count, &data))
        return NULL;
    switch (*code) {
    case EXT_PACKED_ARRAY: return packed(in, false, data, (size_t)count);
    case EXT_SCALAR: return packed(in, true, data, (size_t)count);
    case EXT_OWN_ARRAY: return own_array(in, data, (size_t)count);
    case EXT_OWN_BYTES: return own_bytes(in);
    case EXT_TUPLE: case EXT_ROWS: break;
    default: return NULL;
    }
    const uint8_t *end = in->end; /* read the data of the extension alone, and all of it */
    in->at = data;
    in->end = data + count;
    const uint8_t *first;
    uint64_t items = 0;
    bool right = take(in, 1, &first);
    if (right && *first >= 0x90 && *first <= 0x9f)
        items = *first & 15;
    else
        right = right && (*first == 0xdc || *first == 0xdd) && take_number(in, *first == 0xdc ? 2 : 4, &items);
    PyObject *tree = !right ? NULL : *code == EXT_ROWS ? rows_of(in, items, depth) : sequence(in, items, depth, true);
    if (tree != NULL && in->at != in->end)
        Py_CLEAR(tree);
    in->end = end;
    return tree;
}

static PyObject *string(input *in, uint64_t count, bool key) {
    const uint8_t *bytes;
    if (!take(in, (size_t)count, &bytes))
        return NULL;
    return key ? key_text(in, bytes, (size_t)count) : text_of(in, bytes, (size_t)count);
}

static PyObject *integer(input *in, int bytes, bool with_sign) {
    uint64_t n;
    if (!take_number(in, bytes, &n))
        return NULL;
    if (!with_sign)
        return made(in, PyLong_FromUnsignedLongLong(n));
    int unused = 64 - 8 * bytes;
    return made(in, PyLong_FromLongLong((int64_t)(n << unused) >> unused));
}

static PyObject *floating(input *in) {
    uint64_t bits;
    if (!take_number(in, 8, &bits))
        return NULL;
    double value;
    memcpy(&value, &bits, sizeof value);
    return made(in, PyFloat_FromDouble(value));
}

static PyObject *binary(input *in, uint64_t count) {
    const uint8_t *bytes;
    return take(in, (size_t)count, &bytes) ? made(in, PyBytes_FromStringAndSize((const char *)bytes, (Py_ssize_t)count)) : NULL;
}

PyObject *node(input *in, int depth, bool key) {
    const uint8_t *first;
    if (!take(in, 1, &first))
        return NULL;
    uint8_t code = *first;
    if (code <= 0x7f)
        return made(in, PyLong_FromLong(code));
    if (code >= 0xe0)
        return made(in, PyLong_FromLong((int8_t)code));
    if (code >= 0xa0 && code <= 0xbf)
        return string(in, code & 31, key);
    if (key && (code <= 0x9f || (code >= 0xc7 && code <= 0xc9) || (code >= 0xd4 && code <= 0xd8) || code >= 0xdc))
        return NULL;
    if (code <= 0x8f)
        return mapping(in, code & 15, depth);
    if (code <= 0x9f)
        return sequence(in, code & 15, depth, false);
    uint64_t count = 0;
    switch (code) {
    case 0xc0: Py_RETURN_NONE;
    case 0xc2: Py_RETURN_FALSE;
    case 0xc3: Py_RETURN_TRUE;
    case 0xc4: case 0xc5: case 0xc6: return take_number(in, 1 << (code - 0xc4), &count) ? binary(in, count) : NULL;
    case 0xc7: case 0xc8: case 0xc9: return take_number(in, 1 << (code - 0xc7), &count) ? extension(in, count, depth) : NULL;
    case 0xcb: return floating(in);
    case 0xcc: case 0xcd: case 0xce: case 0xcf: return integer(in, 1 << (code - 0xcc), false);
    case 0xd0: case 0xd1: case 0xd2: case 0xd3: return integer(in, 1 << (code - 0xd0), true);
    case 0xd4: case 0xd5: case 0xd6: case 0xd7: case 0xd8: return extension(in, 1u << (code - 0xd4), depth);
    case 0xd9: case 0xda: case 0xdb: return take_number(in, 1 << (code - 0xd9), &count) ? string(in, count, key) : NULL;
    case 0xdc: case 0xdd: return take_number(in, code == 0xdc ? 2 : 4, &count) ? sequence(in, count, depth, false) : NULL;
    case 0xde: case 0xdf: return take_number(in, code == 0xde ? 2 : 4, &count) ? mapping(in, count, depth) : NULL;
    default: return NULL; /* 0xc1 is nothing, 0xca a float that we do not write */
    }
}

/* Read the header from its first byte to its last, and use up all parts and all of the shared one. */
static PyObject *tree_of(input *in, PyObject *header) {
    size_t size;
    PyObject *holder = open_part(in, header, &in->at, &size);
    if (holder == NULL)
        return NULL;
    in->end = in->at + size;
    PyObject *tree = node(in, 1, false);
    Py_ssize_t used = in->next_part + (in->shared != NULL);
    bool all = in->at == in->end && used == in->part_count && in->shared_used == in->shared_size;
    if (tree != NULL && !all)
        Py_CLEAR(tree);
    Py_DECREF(holder);
    return tree;
}

/* Take (parts, first=0, copy=False). */
static bool arguments(PyObject *const *args, Py_ssize_t count, Py_ssize_t *first, int *copy) {
    if (count < 1 || count > 3) {
        PyErr_Format(PyExc_TypeError, "decode takes parts, first and copy, not %zd arguments", count);
        return false;
    }
    *first = count > 1 ? PyLong_AsSsize_t(args[1]) : 0;
    *copy = count > 2 ? PyObject_IsTrue(args[2]) : 0;
    return !(*copy < 0 || (*first == -1 && PyErr_Occurred()));
}

PyObject *fast_try_decode(PyObject *module, PyObject *const *args, Py_ssize_t arg_count) {
    (void)module;
    Py_ssize_t first;
    int copy;
    if (!arguments(args, arg_count, &first, &copy))
        return NULL;
    PyObject *parts = args[0];
    if (!PyList_CheckExact(parts) && !PyTuple_CheckExact(parts))
        Py_RETURN_NOTIMPLEMENTED;
    Py_ssize_t count = PySequence_Size(parts);
    if (first < 0 || count <= first || count - first > MAX_PARTS)
        Py_RETURN_NOTIMPLEMENTED;
    input in = {.parts = parts, .part_count = count, .next_part = first + 1, .cells_left = MAX_CELLS, .copy = copy};
    PyObject *header = part_at(&in, first), *tree = header != NULL ? tree_of(&in, header) : NULL;
    Py_XDECREF(in.shared);
    if (tree != NULL || in.failed)
        return tree;
    Py_RETURN_NOTIMPLEMENTED;
}

PyObject *fast_decode(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    PyObject *tree = fast_try_decode(module, args, count);
    if (tree != Py_NotImplemented)
        return tree;
    Py_DECREF(tree);
    return PyObject_CallFunctionObjArgs(in_python, args[0], count > 1 ? args[1] : NULL, count > 2 ? args[2] : NULL, NULL);
}

PyObject *fast_prepare_decode(PyObject *module, PyObject *python) {
    (void)module;
    fast_keep(&in_python, python);
    Py_RETURN_NONE;
}
