/* The compiled half of the codec: what encoder.py and decoder.py do, for the nodes that messages are mostly made of.
 *
 * It writes the same bytes and reads them by the same rules (transports/WIRE.md). Whatever it has no form for, or finds wrong,
 * it leaves to them: `try_encode` and `try_decode` then return NotImplemented and have changed nothing; `encode` and `decode` have the
 * Python half do the whole message, from the start, and raise the errors. So nothing here has a message of its own, and what is accepted
 * here must be a subset of what is accepted there; tests/test_codec_fast.py holds the halves against each other.
 */
#ifndef EDGEML_IPC_CODEC_FAST_H
#define EDGEML_IPC_CODEC_FAST_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL edgeml_ipc_codec_array_api
#ifndef EDGEML_IPC_CODEC_MODULE
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the wire is little-endian, and so must be the machine; elsewhere the Python half does all"
#endif

/* As in wire.py. */
enum {
    EXT_PACKED_ARRAY = 1,
    EXT_OWN_ARRAY = 2,
    EXT_SCALAR = 3,
    EXT_OWN_BYTES = 4,
    EXT_TUPLE = 0x10,
    EXT_ROWS = 0x18,
    MAX_DEPTH = 64,
    MAX_PARTS = 16384 - 1,
    MAX_NDIM = 32,
    OWN_PART_BYTES = 4096,
    ALIGNMENT = 8,
};

/* As in rows.py. */
enum { MIN_ROWS = 4, MAX_LEVELS = 8, MAX_FIELDS = 256, MAX_CELLS = 1 << 22 };

/* What a field of a row is: rows.py's letters, and MAP for a dict within it. */
enum { MAP = 'm', ARRAY = 'a', SCALAR = 's', FLOAT = 'f', INT = 'i', BOOL = 'b', NODE = 'n' };

/* How an operation ended: LEAVE leaves the message to the Python half; FAILED has set an exception, always MemoryError. */
typedef enum { DONE, LEAVE, FAILED } fast_outcome;

typedef struct {
    const char *name;
    int type_number;
    uint8_t name_bytes, item_bytes;
} fast_dtype;

/* The dtypes that numpy defines and that may travel, bool first. */
extern const fast_dtype fast_dtypes[];
extern const int fast_dtype_count;

/* Return the entry of a numpy type number, or NULL. */
const fast_dtype *fast_dtype_of(int type_number);

/* What a description says of an array. */
typedef struct {
    const fast_dtype *dtype;
    int nd;
    npy_intp dims[MAX_NDIM];
    size_t bytes;
} fast_description;

/* Read "float32:480,640,3"; false if it is none, or is of more than any memory holds. */
bool fast_describe(const uint8_t *text, size_t count, fast_description *d);

PyObject *fast_encode(PyObject *module, PyObject *tree);
PyObject *fast_try_encode(PyObject *module, PyObject *tree);
PyObject *fast_prepare_encode(PyObject *module, PyObject *args);
PyObject *fast_decode(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *fast_try_decode(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *fast_prepare_decode(PyObject *module, PyObject *python);

/* Hold `object` in a static variable, in place of an earlier one. */
static inline void fast_keep(PyObject **place, PyObject *object) {
    PyObject *before = *place;
    Py_INCREF(object);
    *place = object;
    Py_XDECREF(before);
}

#endif
