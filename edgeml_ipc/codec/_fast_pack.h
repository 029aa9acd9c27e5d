/* Writing msgpack, as msgspec writes it: each number and size in its shortest form. Included by the files that encode. */
#ifndef EDGEML_IPC_CODEC_FAST_PACK_H
#define EDGEML_IPC_CODEC_FAST_PACK_H

#include "_fast.h"

#include <stdlib.h>

enum { FIRST_BYTES = 2048, EXT_HEAD_BYTES = 6 };

/* Bytes that grow; the first ones lie on the stack. */
typedef struct {
    uint8_t *bytes;
    size_t used, room;
    uint8_t first[FIRST_BYTES];
} buffer;

static inline void buffer_open(buffer *b) {
    b->bytes = b->first;
    b->used = 0;
    b->room = FIRST_BYTES;
}

static inline void buffer_close(buffer *b) {
    if (b->bytes != b->first)
        free(b->bytes);
}

/* Return where `more` bytes may be written, and count them as used; NULL without memory. */
static inline uint8_t *extend(buffer *b, size_t more) {
    if (b->room - b->used < more) {
        size_t room = b->room;
        while (room - b->used < more) {
            if (room > SIZE_MAX / 2)
                return NULL;
            room *= 2;
        }
        uint8_t *bytes = b->bytes == b->first ? malloc(room) : realloc(b->bytes, room);
        if (bytes == NULL)
            return NULL;
        if (b->bytes == b->first)
            memcpy(bytes, b->first, b->used);
        b->bytes = bytes;
        b->room = room;
    }
    uint8_t *place = b->bytes + b->used;
    b->used += more;
    return place;
}

static inline fast_outcome no_memory(void) {
    PyErr_NoMemory();
    return FAILED;
}

/* Write a first byte and a big-endian number of `bytes` bytes, which is how msgpack says sizes and integers. */
static inline fast_outcome put(buffer *b, uint8_t code, uint64_t number, int bytes) {
    uint8_t *at = extend(b, 1 + (size_t)bytes);
    if (at == NULL)
        return no_memory();
    *at++ = code;
    for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8)
        *at++ = (uint8_t)(number >> shift);
    return DONE;
}

static inline fast_outcome put_bytes(buffer *b, const void *bytes, size_t count) {
    uint8_t *at = extend(b, count);
    if (at == NULL)
        return no_memory();
    memcpy(at, bytes, count);
    return DONE;
}

/* Sizes of arrays and maps: in the first byte up to 15, else in 2 or 4 more. */
static inline fast_outcome put_count(buffer *b, Py_ssize_t count, uint8_t fixed, uint8_t code16) {
    if (count < 16)
        return put(b, (uint8_t)(fixed | count), 0, 0);
    if (count <= UINT16_MAX)
        return put(b, code16, (uint64_t)count, 2);
    return count <= (Py_ssize_t)UINT32_MAX ? put(b, code16 + 1, (uint64_t)count, 4) : LEAVE;
}

static inline fast_outcome put_sized(buffer *b, const char *bytes, Py_ssize_t count, uint8_t code8) {
    fast_outcome outcome = count <= UINT8_MAX    ? put(b, code8, (uint64_t)count, 1)
                           : count <= UINT16_MAX ? put(b, code8 + 1, (uint64_t)count, 2)
                           : count <= (Py_ssize_t)UINT32_MAX ? put(b, code8 + 2, (uint64_t)count, 4)
                                                             : LEAVE;
    return outcome == DONE ? put_bytes(b, bytes, (size_t)count) : outcome;
}

static inline fast_outcome put_ext_head(buffer *b, uint8_t code, size_t count) {
    fast_outcome outcome;
    switch (count) {
    case 1: outcome = put(b, 0xd4, 0, 0); break;
    case 2: outcome = put(b, 0xd5, 0, 0); break;
    case 4: outcome = put(b, 0xd6, 0, 0); break;
    case 8: outcome = put(b, 0xd7, 0, 0); break;
    case 16: outcome = put(b, 0xd8, 0, 0); break;
    default:
        outcome = count <= UINT8_MAX    ? put(b, 0xc7, count, 1)
                  : count <= UINT16_MAX ? put(b, 0xc8, count, 2)
                  : count <= UINT32_MAX ? put(b, 0xc9, count, 4)
                                        : LEAVE;
    }
    return outcome == DONE ? put_bytes(b, &code, 1) : outcome;
}

static inline fast_outcome put_unsigned(buffer *b, uint64_t n) {
    return n < 128            ? put(b, (uint8_t)n, 0, 0)
           : n <= UINT8_MAX   ? put(b, 0xcc, n, 1)
           : n <= UINT16_MAX  ? put(b, 0xcd, n, 2)
           : n <= UINT32_MAX  ? put(b, 0xce, n, 4)
                              : put(b, 0xcf, n, 8);
}

static inline fast_outcome put_int(buffer *b, PyObject *node) {
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(node, &overflow);
    if (overflow < 0)
        return LEAVE;
    if (overflow > 0) {
        unsigned long long large = PyLong_AsUnsignedLongLong(node);
        if (large == (unsigned long long)-1 && PyErr_Occurred()) {
            PyErr_Clear();
            return LEAVE;
        }
        return put(b, 0xcf, large, 8);
    }
    if (value >= 0)
        return put_unsigned(b, (uint64_t)value);
    return value >= -32           ? put(b, (uint8_t)value, 0, 0)
           : value >= INT8_MIN    ? put(b, 0xd0, (uint64_t)value, 1)
           : value >= INT16_MIN   ? put(b, 0xd1, (uint64_t)value, 2)
           : value >= INT32_MIN   ? put(b, 0xd2, (uint64_t)value, 4)
                                  : put(b, 0xd3, (uint64_t)value, 8);
}

static inline fast_outcome put_float(buffer *b, PyObject *node) {
    double value = PyFloat_AsDouble(node);
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return put(b, 0xcb, bits, 8);
}

static inline fast_outcome put_text(buffer *b, const char *text, Py_ssize_t count) {
    if (count >= 32)
        return put_sized(b, text, count, 0xd9);
    uint8_t *at = extend(b, 1 + (size_t)count);
    if (at == NULL)
        return no_memory();
    *at = (uint8_t)(0xa0 | count);
    memcpy(at + 1, text, (size_t)count);
    return DONE;
}

static inline fast_outcome put_str(buffer *b, PyObject *node) {
    Py_ssize_t count;
    const char *text = PyUnicode_AsUTF8AndSize(node, &count);
    if (text == NULL) { /* a lone surrogate */
        PyErr_Clear();
        return LEAVE;
    }
    return put_text(b, text, count);
}

#endif
