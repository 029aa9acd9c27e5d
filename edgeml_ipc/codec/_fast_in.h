/* What the files that decode share: the message as far as it is read, and what one reads for the other.
 *
 * Every function that returns an object returns NULL where the message is left to the Python half, or `failed` says more. */
#ifndef EDGEML_IPC_CODEC_FAST_IN_H
#define EDGEML_IPC_CODEC_FAST_IN_H

#include "_fast.h"

typedef struct {
    const uint8_t *at, *end;    /* what is left of the header */
    PyObject *parts;            /* a list or tuple */
    Py_ssize_t part_count, next_part;
    PyObject *shared;           /* keeps the shared part alive; NULL until a small array asks for it */
    const uint8_t *shared_bytes;
    size_t shared_used, shared_size;
    int64_t cells_left;         /* of lists of rows */
    bool copy, failed;          /* failed: an exception is set, and is a MemoryError */
} input;

static inline PyObject *fail(input *in) {
    if (PyErr_ExceptionMatches(PyExc_MemoryError))
        in->failed = true;
    else
        PyErr_Clear();
    return NULL;
}

static inline PyObject *made(input *in, PyObject *object) {
    return object != NULL ? object : fail(in);
}

/* Make an array that lies on `bytes`, which `holder` keeps; or a writable copy of them. */
PyObject *array_on(input *in, const fast_description *d, const uint8_t *bytes, PyObject *holder);

/* Read one node; a key of a map may not be a container or an extension. */
PyObject *node(input *in, int depth, bool key);

/* Read so many nodes as a list or tuple. */
PyObject *sequence(input *in, uint64_t count, int depth, bool tuple);

/* Read a list of rows, of whose [count, kinds, map, node ...] the head, which says `items`, has been read. */
PyObject *rows_of(input *in, uint64_t items, int depth);

#endif
