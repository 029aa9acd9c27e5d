/* Lists of dicts that are alike, as columns: rows.py, with its rules.
 *
 * The first row says what the columns would be; then all rows are walked once, and each cell is copied to its place or shows that its
 * column is none. No Python code runs meanwhile, so what the dicts hold stays there. */
#include "_fast_out.h"

typedef struct {
    char kind;        /* MAP, ARRAY ... */
    PyObject *key;    /* borrowed from the first row, as the others */
    int parent, end;  /* the map it is in, and the first field that is not below it */
    const fast_dtype *dtype;
    int nd;
    npy_intp dims[MAX_NDIM + 1]; /* of the column: rows first */
    size_t cell_bytes;
    PyObject *part;   /* a large column is a part of its own */
    size_t at;        /* where a small one begins among the small ones */
    uint8_t *to;
} field;

typedef struct {
    field *fields; /* depth first; the row's own map is the first */
    int count;
    Py_ssize_t rows;
    buffer small;  /* the columns that go to the shared part */
} table;

static bool is_map(PyObject *node, int level) {
    if (!PyDict_CheckExact(node) || PyDict_Size(node) == 0 || level > MAX_LEVELS)
        return false;
    Py_ssize_t position = 0;
    PyObject *key, *value;
    while (PyDict_Next(node, &position, &key, &value))
        if (!PyUnicode_CheckExact(key))
            return false;
    return true;
}

static int64_t as_int64(PyObject *cell, bool *fits) {
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(cell, &overflow);
    *fits = overflow == 0;
    return value;
}

static bool has_row_form(PyObject *cell) {
    PyArrayObject *array = (PyArrayObject *)cell;
    return PyArray_DESCR(array)->byteorder != '>' && PyArray_IS_C_CONTIGUOUS(array);
}

/* Say what a column of cells like this one would be. */
static void plan_cell(field *f, PyObject *cell, Py_ssize_t rows) {
    PyTypeObject *type = Py_TYPE(cell);
    f->kind = NODE;
    f->nd = 1;
    f->dims[0] = rows;
    bool fits = true;
    if (PyArray_CheckExact(cell)) {
        PyArrayObject *array = (PyArrayObject *)cell;
        int nd = PyArray_NDIM(array);
        f->dtype = fast_dtype_of(PyArray_DESCR(array)->type_num);
        if (f->dtype == NULL || nd >= MAX_NDIM || !has_row_form(cell))
            return;
        f->cell_bytes = (size_t)PyArray_SIZE(array) * f->dtype->item_bytes;
        if (f->cell_bytes >= OWN_PART_BYTES)
            return;
        f->nd = nd + 1;
        for (int i = 0; i < nd; i++)
            f->dims[i + 1] = PyArray_DIM(array, i);
        f->kind = ARRAY;
        return;
    }
    if (type == &PyFloat_Type)
        f->kind = FLOAT;
    else if (type == &PyBool_Type)
        f->kind = BOOL;
    else if (type == &PyLong_Type)
        f->kind = (as_int64(cell, &fits), fits) ? INT : NODE;
    else if ((f->dtype = scalar_dtype(type)) != NULL)
        f->kind = SCALAR;
    if (f->kind != SCALAR && f->kind != NODE)
        f->dtype = fast_dtype_of(f->kind == FLOAT ? NPY_FLOAT64 : f->kind == INT ? NPY_INT64 : NPY_BOOL);
    if (f->kind != NODE)
        f->cell_bytes = f->dtype->item_bytes;
}

/* Plan the fields of a map and below; false if they are too many. */
static bool plan_map(table *t, int map, PyObject *node, int level) {
    Py_ssize_t position = 0;
    PyObject *key, *value;
    t->fields[map].kind = MAP;
    while (PyDict_Next(node, &position, &key, &value)) {
        if (t->count == MAX_FIELDS)
            return false;
        int index = t->count++;
        field *f = &t->fields[index];
        memset(f, 0, sizeof *f);
        f->key = key;
        f->parent = map;
        if (!is_map(value, level + 1))
            plan_cell(f, value, t->rows);
        else if (!plan_map(t, index, value, level + 1))
            return false;
        f->end = t->count;
    }
    t->fields[map].end = t->count;
    return true;
}

/* Make room for all columns. */
static fast_outcome allocate(table *t) {
    for (int i = 1; i < t->count; i++) {
        field *f = &t->fields[i];
        if (f->kind == MAP || f->kind == NODE)
            continue;
        size_t bytes = f->cell_bytes * (size_t)t->rows; /* under 2**34: 2**22 cells of under 2**12 bytes */
        if (bytes < OWN_PART_BYTES) {
            f->at = t->small.used;
            if (extend(&t->small, bytes + -bytes % ALIGNMENT) == NULL)
                return no_memory();
        } else {
            f->part = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)bytes);
            if (f->part == NULL)
                return FAILED;
            f->to = (uint8_t *)PyBytes_AsString(f->part);
        }
    }
    for (int i = 1; i < t->count; i++)
        if (t->fields[i].to == NULL)
            t->fields[i].to = t->small.bytes + t->fields[i].at;
    return DONE;
}

/* Copy a cell to its place; false if it is not as the first one was. */
static bool fill_cell(const field *f, PyObject *cell, uint8_t *to) {
    bool fits;
    switch (f->kind) {
    case ARRAY: {
        PyArrayObject *array = (PyArrayObject *)cell;
        if (!PyArray_CheckExact(cell) || PyArray_NDIM(array) != f->nd - 1 || PyArray_DESCR(array)->type_num != f->dtype->type_number ||
            !has_row_form(cell))
            return false;
        for (int i = 1; i < f->nd; i++)
            if (PyArray_DIM(array, i - 1) != f->dims[i])
                return false;
        if (f->cell_bytes)
            memcpy(to, PyArray_DATA(array), f->cell_bytes);
        return true;
    }
    case FLOAT: {
        if (Py_TYPE(cell) != &PyFloat_Type)
            return false;
        double value = PyFloat_AsDouble(cell);
        memcpy(to, &value, sizeof value);
        return true;
    }
    case INT: {
        if (Py_TYPE(cell) != &PyLong_Type)
            return false;
        int64_t value = as_int64(cell, &fits);
        memcpy(to, &value, sizeof value);
        return fits;
    }
    case BOOL:
        *to = cell == Py_True;
        return Py_TYPE(cell) == &PyBool_Type;
    default: { /* SCALAR */
        if (scalar_dtype(Py_TYPE(cell)) != f->dtype)
            return false;
        union {
            double aligned[2];
            char bytes[16];
        } value;
        PyArray_ScalarAsCtype(cell, &value);
        memcpy(to, value.bytes, f->cell_bytes);
        return true;
    }
    }
}

static bool is_same_key(PyObject *one, PyObject *other) {
    return one == other || (PyUnicode_CheckExact(other) && PyUnicode_Compare(one, other) == 0);
}

static bool has_same_keys(const table *t, int map, PyObject *node) {
    if (!PyDict_CheckExact(node))
        return false;
    Py_ssize_t position = 0;
    PyObject *key, *value;
    int i = map + 1, end = t->fields[map].end;
    for (; i < end && PyDict_Next(node, &position, &key, &value); i = t->fields[i].end)
        if (!is_same_key(t->fields[i].key, key))
            return false;
    return i == end && !PyDict_Next(node, &position, &key, &value);
}

/* Copy a row's cells; a field below the map that is not as in the first row becomes NODE. The map itself has the same keys. */
static void fill_map(table *t, int map, PyObject *node, Py_ssize_t row) {
    Py_ssize_t position = 0;
    PyObject *key, *value;
    for (int i = map + 1; i < t->fields[map].end; i = t->fields[i].end) {
        field *f = &t->fields[i];
        PyDict_Next(node, &position, &key, &value);
        if (f->kind == NODE)
            continue;
        if (f->kind == MAP && has_same_keys(t, i, value))
            fill_map(t, i, value, row);
        else if (f->kind == MAP || !fill_cell(f, value, f->to + (size_t)row * f->cell_bytes))
            f->kind = NODE;
    }
}

static fast_outcome put_column(output *out, const field *f) {
    if (f->part == NULL) {
        fast_outcome outcome = put_description(&out->header, EXT_PACKED_ARRAY, f->dtype, f->nd, f->dims);
        return outcome == DONE ? share(out, f->to, f->cell_bytes * (size_t)f->dims[0]) : outcome;
    }
    fast_outcome outcome = put_description(&out->header, EXT_OWN_ARRAY, f->dtype, f->nd, f->dims);
    return outcome == DONE ? put_part(out, f->part) : outcome;
}

static fast_outcome put_map(output *out, const table *t, int map) {
    int children = 0;
    for (int i = map + 1; i < t->fields[map].end; i = t->fields[i].end)
        children++;
    fast_outcome outcome = put_count(&out->header, children, 0x80, 0xde);
    for (int i = map + 1; outcome == DONE && i < t->fields[map].end; i = t->fields[i].end) {
        const field *f = &t->fields[i];
        outcome = put_str(&out->header, f->key);
        if (outcome == DONE)
            outcome = f->kind == MAP    ? put_map(out, t, i)
                      : f->kind == NODE ? put(&out->header, 0xc0, 0, 0)
                                        : put_column(out, f);
    }
    return outcome;
}

/* Return the value of a field in a row, borrowed; NULL if it is gone, which only Python code that runs in between can bring about. */
static PyObject *cell_of(const table *t, int index, PyObject *list, Py_ssize_t row) {
    const field *f = &t->fields[index];
    PyObject *map = f->parent == 0 ? PyList_GetItem(list, row) : cell_of(t, f->parent, list, row);
    return map != NULL && PyDict_CheckExact(map) ? PyDict_GetItemWithError(map, f->key) : NULL;
}

/* Write the cells of a field that is no column, in order. */
static fast_outcome put_nodes(output *out, const table *t, int index, PyObject *list, int depth) {
    for (Py_ssize_t row = 0; row < t->rows; row++) {
        PyObject *cell = cell_of(t, index, list, row);
        if (cell == NULL) {
            PyErr_Clear();
            return LEAVE;
        }
        Py_INCREF(cell);
        fast_outcome outcome = put_node(out, cell, depth + 1);
        Py_DECREF(cell);
        if (outcome != DONE)
            return outcome;
    }
    return DONE;
}

/* Write [count, kinds, map, node ...]. */
static fast_outcome put_table(output *out, const table *t, PyObject *list, int depth) {
    char kinds[MAX_FIELDS];
    int leaves = 0, nodes = 0;
    for (int i = 1; i < t->count; i = t->fields[i].kind == MAP ? i + 1 : t->fields[i].end) {
        if (t->fields[i].kind == MAP)
            continue;
        kinds[leaves++] = t->fields[i].kind;
        nodes += t->fields[i].kind == NODE;
    }
    buffer *b = &out->header;
    size_t start = b->used;
    if (extend(b, EXT_HEAD_BYTES) == NULL)
        return no_memory();
    fast_outcome outcome = put_count(b, 3 + nodes * t->rows, 0x90, 0xdc);
    if (outcome == DONE)
        outcome = put_unsigned(b, (uint64_t)t->rows);
    if (outcome == DONE)
        outcome = put_text(b, kinds, leaves);
    if (outcome == DONE)
        outcome = put_map(out, t, 0);
    for (int i = 1; outcome == DONE && i < t->count; i = t->fields[i].kind == MAP ? i + 1 : t->fields[i].end)
        if (t->fields[i].kind == NODE)
            outcome = put_nodes(out, t, i, list, depth);
    return outcome == DONE ? close_extension(b, start, EXT_ROWS) : outcome;
}

static fast_outcome fill_and_put(output *out, table *t, PyObject *list, int depth) {
    fast_outcome outcome = allocate(t);
    for (Py_ssize_t row = 0; outcome == DONE && row < t->rows; row++)
        fill_map(t, 0, PyList_GetItem(list, row), row);
    for (int i = 0; outcome == DONE && i < t->count; i++)
        Py_INCREF(t->fields[i].key); /* the first row may lose them while its nodes are written */
    if (outcome != DONE)
        return outcome;
    outcome = put_table(out, t, list, depth);
    for (int i = 0; i < t->count; i++)
        Py_DECREF(t->fields[i].key);
    return outcome;
}

fast_outcome put_rows(output *out, PyObject *list, int depth, bool *rows) {
    table t = {.rows = PyList_Size(list)};
    *rows = false;
    PyObject *first = t.rows >= MIN_ROWS && depth + MAX_LEVELS < MAX_DEPTH ? PyList_GetItem(list, 0) : NULL;
    if (first == NULL || !is_map(first, 1))
        return DONE;
    t.fields = malloc(MAX_FIELDS * sizeof *t.fields);
    if (t.fields == NULL)
        return no_memory();
    memset(t.fields, 0, sizeof *t.fields);
    t.fields[0].key = Py_None;
    t.count = 1;
    *rows = plan_map(&t, 0, first, 1) && t.rows <= out->cells_left / t.count;
    for (Py_ssize_t row = 1; *rows && row < t.rows; row++)
        *rows = has_same_keys(&t, 0, PyList_GetItem(list, row));
    fast_outcome outcome = DONE;
    if (*rows) {
        out->cells_left -= t.rows * t.count;
        buffer_open(&t.small);
        outcome = fill_and_put(out, &t, list, depth);
        buffer_close(&t.small);
        for (int i = 0; i < t.count; i++)
            Py_XDECREF(t.fields[i].part);
    }
    free(t.fields);
    return outcome;
}
