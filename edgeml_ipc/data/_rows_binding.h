/* What the files of the binding of rows.h share. */
#ifndef EDGEML_IPC_ROWS_BINDING_H
#define EDGEML_IPC_ROWS_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "rows.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the layout is that of little-endian machines"
#endif

typedef struct {
    PyObject_HEAD
    erb_table *table; /* NULL: closed */
    Py_buffer segment;
    int users;    /* calls that use the table without the interpreter lock */
    bool closing; /* the last of them closes it */
} Table;

extern PyTypeObject *erb_table_type;

PyObject *erb_raise(int status);       /* returns NULL */
erb_table *erb_opened(Table *self);    /* NULL with an error set: closed */
void erb_let_go(Table *self);          /* the end of a use without the interpreter lock */
void erb_raise_writer_closed(void);
int erb_add_stream(PyObject *module);
int erb_add_flow(PyObject *module);
int erb_add_steps(PyObject *module);
PyObject *erb_new_stream(Table *table, PyObject *spec);
PyObject *erb_new_steps(Table *table, const erb_span *spans, size_t count);

#endif
