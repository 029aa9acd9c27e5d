/* What the files that encode share: the message as it grows, and what one writes for the other. */
#ifndef EDGEML_IPC_CODEC_FAST_OUT_H
#define EDGEML_IPC_CODEC_FAST_OUT_H

#include "_fast_pack.h"

typedef struct {
    buffer header, shared;
    bool shares; /* there is a shared part, though it may be empty */
    PyObject *parts;
    int64_t cells_left; /* of lists of rows */
} output;

static inline fast_outcome put_part(output *out, PyObject *part) {
    return PyList_Append(out->parts, part) == 0 ? DONE : FAILED;
}

/* Append to the shared part, padded. `from` may be NULL where there is nothing. */
fast_outcome share(output *out, const void *from, size_t count);

/* Write "float32:480,640,3" as the data of an extension type. */
fast_outcome put_description(buffer *b, uint8_t code, const fast_dtype *dtype, int nd, const npy_intp *dims);

/* Put the head of an extension type in front of its data, for which EXT_HEAD_BYTES were left free at `start`. */
fast_outcome close_extension(buffer *b, size_t start, uint8_t code);

/* Return the entry of a numpy scalar's type, or NULL. */
const fast_dtype *scalar_dtype(PyTypeObject *type);

fast_outcome put_node(output *out, PyObject *node, int depth);

/* Write a list as columns, if `rows` says afterwards that its items are rows; otherwise nothing was written. */
fast_outcome put_rows(output *out, PyObject *list, int depth, bool *rows);

#endif
