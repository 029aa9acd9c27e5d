/* Columns back to a list of dicts: rows.py, with its rules. The columns are read as the arrays that they are, and checked;
 * then the rows are made, one after the other. */
#include "_fast_in.h"

#include <stdlib.h>

typedef struct {
    PyObject *key;       /* borrowed from the map, which lives as long */
    int end;             /* the first field that is not below this one */
    char kind;           /* MAP, ARRAY ... */
    fast_description d;  /* of a cell */
    const uint8_t *bytes;
    PyObject *holder;    /* borrowed: what keeps the column's memory */
    PyObject *nodes;     /* the cells, of a field that is no column */
} field;

typedef struct {
    field *fields; /* depth first; the row's own map is the first */
    int count;
    int64_t rows;
    const char *kinds;
    Py_ssize_t kinds_left, node_fields;
} table;

/* Check a column against its kind. */
static bool read_column(table *t, field *f, PyObject *column) {
    if (f->kind == NODE)
        return column == Py_None;
    if (!PyArray_CheckExact(column))
        return false;
    PyArrayObject *array = (PyArrayObject *)column;
    int nd = PyArray_NDIM(array);
    f->d.dtype = fast_dtype_of(PyArray_DESCR(array)->type_num);
    if (nd < 1 || PyArray_DIM(array, 0) != t->rows || f->d.dtype == NULL || PyArray_BASE(array) == NULL)
        return false;
    f->d.nd = nd - 1;
    f->d.bytes = f->d.dtype->item_bytes;
    for (int i = 1; i < nd; i++) {
        f->d.dims[i - 1] = PyArray_DIM(array, i);
        f->d.bytes *= (size_t)PyArray_DIM(array, i); /* no overflow unless there are no rows: the column's own bytes are a multiple */
    }
    f->bytes = PyArray_DATA(array);
    f->holder = PyArray_BASE(array);
    int type = f->d.dtype->type_number;
    switch (f->kind) {
    case ARRAY: return true;
    case SCALAR: return nd == 1;
    case FLOAT: return nd == 1 && type == NPY_FLOAT64;
    case INT: return nd == 1 && type == NPY_INT64;
    case BOOL: return nd == 1 && type == NPY_BOOL;
    default: return false;
    }
}

static bool read_map(table *t, int map, PyObject *tree) {
    Py_ssize_t position = 0;
    PyObject *key, *value;
    t->fields[map].kind = MAP;
    while (PyDict_Next(tree, &position, &key, &value)) {
        if (t->count == MAX_FIELDS || !PyUnicode_CheckExact(key))
            return false;
        int index = t->count++;
        field *f = &t->fields[index];
        memset(f, 0, sizeof *f);
        f->key = key;
        if (PyDict_CheckExact(value)) {
            if (!read_map(t, index, value))
                return false;
        } else {
            if (t->kinds_left == 0)
                return false;
            f->kind = *t->kinds++;
            t->kinds_left--;
            t->node_fields += f->kind == NODE;
            if (!read_column(t, f, value))
                return false;
        }
        f->end = t->count;
    }
    t->fields[map].end = t->count;
    return true;
}

static PyObject *cell_of(input *in, const field *f, int64_t row) {
    const uint8_t *at = f->bytes + (size_t)row * f->d.bytes;
    switch (f->kind) {
    case ARRAY: return array_on(in, &f->d, at, f->holder);
    case NODE: {
        PyObject *cell = PyList_GetItem(f->nodes, (Py_ssize_t)row);
        Py_INCREF(cell);
        return cell;
    }
    case FLOAT: {
        double value;
        memcpy(&value, at, sizeof value);
        return made(in, PyFloat_FromDouble(value));
    }
    case INT: {
        int64_t value;
        memcpy(&value, at, sizeof value);
        return made(in, PyLong_FromLongLong(value));
    }
    case BOOL: return PyBool_FromLong(*at != 0);
    default: { /* SCALAR */
        PyArray_Descr *descr = PyArray_DescrFromType(f->d.dtype->type_number);
        if (descr == NULL)
            return fail(in);
        uint64_t aligned[2] = {0, 0};
        memcpy(aligned, at, f->d.bytes);
        PyObject *value = PyArray_Scalar(aligned, descr, NULL);
        Py_DECREF(descr);
        return made(in, value);
    }
    }
}

static PyObject *row_of(input *in, const table *t, int map, int64_t row) {
    PyObject *items = made(in, PyDict_New());
    for (int i = map + 1; items != NULL && i < t->fields[map].end; i = t->fields[i].end) {
        const field *f = &t->fields[i];
        PyObject *value = f->kind == MAP ? row_of(in, t, i, row) : cell_of(in, f, row);
        if (value == NULL) {
            Py_CLEAR(items);
        } else if (PyDict_SetItem(items, f->key, value) != 0) {
            fail(in);
            Py_CLEAR(items);
        }
        Py_XDECREF(value);
    }
    return items;
}

/* Read the nodes, field by field, and make the rows. */
static PyObject *make_rows(input *in, table *t, int depth) {
    for (int i = 1; i < t->count; i++)
        if (t->fields[i].kind == NODE && (t->fields[i].nodes = sequence(in, (uint64_t)t->rows, depth, false)) == NULL)
            return NULL;
    PyObject *rows = made(in, PyList_New((Py_ssize_t)t->rows));
    for (int64_t row = 0; rows != NULL && row < t->rows; row++) {
        PyObject *items = row_of(in, t, 0, row);
        if (items == NULL)
            Py_CLEAR(rows);
        else
            PyList_SetItem(rows, (Py_ssize_t)row, items);
    }
    return rows;
}

/* Read the map's columns where they lie, even if the cells shall be copies. */
static PyObject *columns_of(input *in, int depth) {
    bool copy = in->copy;
    in->copy = false;
    PyObject *tree = node(in, depth + 1, false);
    in->copy = copy;
    return tree;
}

PyObject *rows_of(input *in, uint64_t items, int depth) {
    if (depth > MAX_DEPTH || items < 3)
        return NULL;
    PyObject *rows = NULL, *count = node(in, depth + 1, false), *kinds = count != NULL ? node(in, depth + 1, false) : NULL;
    PyObject *tree = kinds != NULL ? columns_of(in, depth) : NULL;
    if (tree != NULL && PyLong_CheckExact(count) && PyUnicode_CheckExact(kinds) && PyDict_CheckExact(tree)) {
        int overflow;
        table t = {.count = 1, .rows = PyLong_AsLongLongAndOverflow(count, &overflow)};
        t.kinds = PyUnicode_AsUTF8AndSize(kinds, &t.kinds_left);
        t.fields = malloc(MAX_FIELDS * sizeof *t.fields);
        if (t.fields == NULL) {
            PyErr_NoMemory();
            in->failed = true;
        } else if (t.kinds == NULL) { /* a lone surrogate */
            PyErr_Clear();
        } else if (!overflow && t.rows >= 0 && read_map(&t, 0, tree) && t.kinds_left == 0 && t.rows <= in->cells_left / t.count &&
                   items == 3 + (uint64_t)(t.node_fields * t.rows)) {
            in->cells_left -= t.rows * t.count;
            rows = make_rows(in, &t, depth);
            for (int i = 1; i < t.count; i++)
                Py_XDECREF(t.fields[i].kind == NODE ? t.fields[i].nodes : NULL);
        }
        free(t.fields);
    }
    Py_XDECREF(tree);
    Py_XDECREF(kinds);
    Py_XDECREF(count);
    return rows;
}
