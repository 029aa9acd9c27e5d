/* Stream: transitions from Python objects into rows, without a detour through arrays where they are just as they are stored.
 *
 * The fast way takes a dict (or a list of them, or one of stacked arrays) whose leaves are numpy arrays and scalars of the very
 * shape and dtype, or Python numbers. Whatever else is given is declined: Python then converts it, or says what is wrong with it,
 * and comes back with `append`.
 *
 * This file is longer than 400 lines because all ways in share the one walk through an item, and what is held during it. */
#include "_rows_array.h"
#include "_rows_binding.h"

#include <structmember.h>

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_DIMS 32
#define MAX_OPTIONAL 4 /* keys beside those of what is stored */
#define NOT_HELD_BYTES (256 * 1024) /* from here on the interpreter lock is let go while rows are written */
#define LOOK_NS 1000000             /* of holding back, after which it is seen whether that is still wanted */
#define MAX_LIST_BYTES (64u << 20)  /* a list of dicts that is larger is stacked by numpy instead */

enum { DECLINED = 0, DONE = 1, FAILED = -1 };

/* What a key stands for. */
typedef enum { STORED, FOLLOWING, DONES, END, VERSION } role;

typedef struct node {
    PyObject *key;
    role role;
    int column; /* -1: a dict */
    struct node *children;
    Py_ssize_t count, required; /* children; how many of them, the first ones, each item has */
    Py_ssize_t met;             /* which child the key of this number, as this child is counted, was in the dict before */
} node;

typedef struct {
    char kind; /* as numpy's: f i u b; 0: only `append` can take it */
    Py_ssize_t itemsize;
    int dims;
    Py_ssize_t shape[MAX_DIMS];
    Py_ssize_t bytes; /* of one item */
    PyObject *dtype;  /* that arrays of this machine have */
} leaf;

typedef struct {
    PyObject_HEAD
    Table *table;
    uint32_t place;
    long long number;
    pthread_mutex_t mutex; /* one call at a time */
    bool has_mutex, is_fast;
    node data;
    leaf *leaves;
    Py_ssize_t columns;
    int dones, ends, masks; /* columns, -1: none */
    const uint8_t **values, **nexts;
    PyObject **arrays; /* that are kept while their memory is used */
    Py_buffer *views;
    Py_ssize_t kept, held, room;
    uint8_t (*scratch)[16]; /* numbers of Python's, by column, and again for those that follow */
} Stream;

typedef struct {
    bool has_next, given_end, ended;
    const uint8_t *end_flags[2]; /* of many rows */
    long long version;
    const uint8_t *versions; /* of many rows, int64 */
} extras;

static PyTypeObject *stream_type, *type_array, *type_scalar;
static PyObject *make_dtype;
static bool is_array_known; /* see _rows_array.h */
static leaf flag_leaf = {.kind = 'b', .itemsize = 1, .bytes = 1}, version_leaf = {.kind = 'i', .itemsize = 8, .bytes = 8};

/* ---- the shape of a transition --------------------------------------------------------------------------------------- */

static void free_node(node *n) {
    for (Py_ssize_t i = 0; i < n->count; i++) free_node(&n->children[i]);
    free(n->children);
    Py_XDECREF(n->key);
    *n = (node){0};
}

static node *add_child(node *parent, PyObject *key, role role) {
    node *n = &parent->children[parent->count];
    *n = (node){.key = Py_NewRef(key), .role = role, .column = -1, .met = parent->count++};
    PyUnicode_InternInPlace(&n->key); /* as keys that stand in a program are */
    return n;
}

/* ((key, column or children), ...), to the children that are there. */
static int read_nodes(PyObject *spec, node *parent, role role, Py_ssize_t columns) {
    Py_ssize_t count = PyTuple_Size(spec);
    if (count < 0) return -1;
    if (!parent->children) parent->children = calloc((size_t)count + MAX_OPTIONAL, sizeof(node));
    if (!parent->children) return PyErr_NoMemory(), -1;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *key, *child;
        if (!PyArg_ParseTuple(PyTuple_GetItem(spec, i), "UO", &key, &child)) return -1;
        node *n = add_child(parent, key, role);
        if (PyTuple_Check(child)) {
            if (read_nodes(child, n, role, columns)) return -1;
            continue;
        }
        n->column = (int)PyLong_AsLong(child);
        if (PyErr_Occurred()) return -1;
        if (n->column < 0 || n->column >= columns) return PyErr_Format(PyExc_ValueError, "there is no column %d", n->column), -1;
    }
    parent->required = parent->count;
    return 0;
}

/* All that a dict may have: what is stored, and what says more of it. */
static int read_tree(Stream *s, PyObject *data, PyObject *next) {
    static const struct { const char *key; role role; } more[] = {{"dones", DONES}, {"end_of_trajectory", END}, {"policy_version", VERSION}};
    if (PyTuple_Size(next) > 1) return PyErr_Format(PyExc_ValueError, "observations that follow have one name"), -1;
    if (read_nodes(data, &s->data, STORED, s->columns)) return -1;
    Py_ssize_t required = s->data.required;
    if (read_nodes(next, &s->data, FOLLOWING, s->columns)) return -1;
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        PyObject *key = PyUnicode_FromString(more[i].key);
        if (!key) return -1;
        add_child(&s->data, key, more[i].role);
        Py_DECREF(key);
    }
    s->data.required = required;
    return 0;
}

static int read_dtype(leaf *l) {
    l->dtype = PyObject_CallFunction(make_dtype, "N", PyUnicode_FromFormat("%c%zd", l->kind, l->itemsize));
    return l->dtype ? 0 : -1;
}

/* (kind, itemsize, shape) */
static int read_leaf(PyObject *spec, leaf *l) {
    PyObject *shape;
    int kind;
    if (!PyArg_ParseTuple(spec, "CnO!", &kind, &l->itemsize, &PyTuple_Type, &shape)) return -1;
    l->kind = strchr("fiub", kind) && l->itemsize <= 8 ? (char)kind : 0;
    l->bytes = l->itemsize;
    l->dims = (int)PyTuple_Size(shape);
    if (l->dims >= MAX_DIMS) return PyErr_Format(PyExc_ValueError, "an item has at most %d dimensions", MAX_DIMS - 1), -1;
    for (int i = 0; i < l->dims; i++) {
        l->shape[i] = PyLong_AsSsize_t(PyTuple_GetItem(shape, i));
        if (PyErr_Occurred()) return -1;
        l->bytes *= l->shape[i];
    }
    return l->kind ? read_dtype(l) : 0;
}

static bool is_column_of(const Stream *s, int column, char kind) { return column < 0 || (s->leaves[column].kind == kind && !s->leaves[column].dims); }

/* spec: (data, next, leaves, dones, end_of_trajectory, masks) */
static int read_spec(Stream *s, PyObject *spec) {
    PyObject *data, *next, *leaves;
    if (!PyArg_ParseTuple(spec, "O!O!O!iii", &PyTuple_Type, &data, &PyTuple_Type, &next, &PyTuple_Type, &leaves, &s->dones, &s->ends, &s->masks))
        return -1;
    s->columns = PyTuple_Size(leaves);
    if ((size_t)s->columns != s->table->table->column_count) return PyErr_Format(PyExc_ValueError, "got %zd leaves for %zu columns", s->columns, s->table->table->column_count), -1;
    size_t room = (size_t)s->columns + 1;
    s->leaves = calloc(room, sizeof *s->leaves);
    s->values = calloc(room, sizeof *s->values);
    s->nexts = calloc(room, sizeof *s->nexts);
    s->room = 2 * s->columns + 3;
    s->views = calloc((size_t)s->room, sizeof *s->views);
    s->arrays = calloc((size_t)s->room, sizeof *s->arrays);
    s->scratch = calloc(2 * room, sizeof *s->scratch);
    if (!s->leaves || !s->values || !s->nexts || !s->views || !s->arrays || !s->scratch) return PyErr_NoMemory(), -1;
    s->is_fast = true;
    for (Py_ssize_t i = 0; i < s->columns; i++) {
        if (read_leaf(PyTuple_GetItem(leaves, i), &s->leaves[i])) return -1;
        s->is_fast &= s->leaves[i].kind != 0;
        if ((uint64_t)s->leaves[i].bytes != s->table->table->columns[i].item_bytes) return PyErr_Format(PyExc_ValueError, "leaf %zd has %zd bytes, its column another number", i, s->leaves[i].bytes), -1;
    }
    if (s->dones >= s->columns || s->ends >= s->columns || s->masks >= s->columns) return PyErr_Format(PyExc_ValueError, "there is no such column"), -1;
    s->is_fast &= is_column_of(s, s->dones, 'b') && is_column_of(s, s->ends, 'b') && (s->masks < 0 || !s->leaves[s->masks].dims);
    return read_tree(s, data, next);
}

/* ---- one leaf -------------------------------------------------------------------------------------------------------- */

static char kind_of(const char *format) {
    if (!format) return 'u';
    if (*format == '@' || *format == '=' || *format == '<') format++; /* of this machine, which is little-endian */
    if (!format[0] || format[1]) return 0;
    if (strchr("efd", *format)) return 'f';
    if (strchr("bhilq", *format)) return 'i';
    if (strchr("BHILQ", *format)) return 'u';
    return *format == '?' ? 'b' : 0;
}

static bool is_packed(const Py_buffer *view) {
    Py_ssize_t step = view->itemsize;
    for (int i = view->ndim - 1; i >= 0; i--) {
        if (view->shape[i] > 1 && view->strides[i] != step) return false;
        step *= view->shape[i];
    }
    return true;
}

static bool has_shape(const leaf *l, Py_ssize_t rows, int dims, const Py_ssize_t *shape) {
    int extra = rows >= 0;
    if (dims != l->dims + extra || (extra && shape[0] != rows)) return false;
    for (int i = 0; i < l->dims; i++)
        if (shape[i + extra] != l->shape[i]) return false;
    return true;
}

/* The way of scalars, and of arrays that the one below does not know. */
static int take_buffer(Stream *s, PyObject *value, const leaf *l, Py_ssize_t rows, const uint8_t **out) {
    Py_buffer *view = &s->views[s->held];
    if (PyObject_GetBuffer(value, view, PyBUF_RECORDS_RO) < 0) return PyErr_Clear(), DECLINED;
    s->held++;
    if (view->itemsize != l->itemsize || kind_of(view->format) != l->kind || !has_shape(l, rows, view->ndim, view->shape)) return DECLINED;
    if (!is_packed(view)) return DECLINED;
    *out = view->buf;
    return DONE;
}

/* Take the memory of an array; `rows` < 0: one item, else so many, stacked. */
static int take_array(Stream *s, PyObject *value, const leaf *l, Py_ssize_t rows, const uint8_t **out) {
    bool is_array = Py_TYPE(value) == type_array;
    if (!is_array && (rows >= 0 || !PyType_IsSubtype(Py_TYPE(value), type_scalar))) return DECLINED;
    if (s->held == s->room || s->kept == s->room) return DECLINED; /* a dict that changes while it is walked through */
    const erb_array *array = erb_array_of(value);
    bool is_plain = is_array && is_array_known && array->dtype == l->dtype && array->flags & ERB_ARRAY_PACKED;
    if (!is_plain || !has_shape(l, rows, array->dims, array->shape)) return take_buffer(s, value, l, rows, out);
    s->arrays[s->kept++] = Py_NewRef(value);
    *out = array->data;
    return DONE;
}

static int take_number(PyObject *value, const leaf *l, uint8_t *scratch) {
    if (PyFloat_CheckExact(value)) {
        double number = PyFloat_AsDouble(value);
        float single = (float)number;
        if (l->kind != 'f' || l->itemsize < 4) return DECLINED;
        if (l->itemsize == 4) memcpy(scratch, &single, 4);
        else memcpy(scratch, &number, 8);
        return DONE;
    }
    if (PyBool_Check(value)) {
        if (l->kind != 'b') return DECLINED;
        scratch[0] = value == Py_True;
        return DONE;
    }
    if (!PyLong_CheckExact(value) || (l->kind != 'i' && l->kind != 'u')) return DECLINED;
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    int bits = (int)l->itemsize * 8 - (l->kind == 'i');
    if (overflow || (l->kind == 'u' && number < 0)) return DECLINED;
    if (bits < 63 && (number >> bits) != 0 && (number >> bits) != -1) return DECLINED;
    if (bits < 63 && l->kind == 'u' && number >> bits) return DECLINED;
    memcpy(scratch, &number, (size_t)l->itemsize); /* this machine is little-endian, see _rows_binding.h */
    return DONE;
}

static int take_leaf(Stream *s, PyObject *value, int column, Py_ssize_t rows, bool is_next) {
    const leaf *l = &s->leaves[column];
    const uint8_t **out = is_next ? &s->nexts[column] : &s->values[column];
    uint8_t *scratch = s->scratch[column + (is_next ? s->columns : 0)];
    if (rows < 0 && !l->dims && take_number(value, l, scratch) == DONE) {
        *out = scratch;
        return DONE;
    }
    return take_array(s, value, l, rows, out);
}

/* ---- a transition ---------------------------------------------------------------------------------------------------- */

/* `dones` or `end_of_trajectory`. */
static int take_end(Stream *s, PyObject *value, int which, Py_ssize_t rows, extras *x) {
    const uint8_t *memory;
    x->given_end = true;
    if (rows < 0 && PyBool_Check(value)) {
        x->ended |= value == Py_True;
        return DONE;
    }
    if (take_array(s, value, &flag_leaf, rows, &memory) != DONE) return DECLINED;
    if (rows < 0) x->ended |= *memory != 0;
    else x->end_flags[which] = memory;
    return DONE;
}

static int take_version(Stream *s, PyObject *value, Py_ssize_t rows, extras *x) {
    if (PyLong_CheckExact(value)) {
        int overflow;
        x->version = PyLong_AsLongLongAndOverflow(value, &overflow);
        return overflow || x->version < INT32_MIN || x->version > INT32_MAX ? DECLINED : DONE;
    }
    return rows < 0 ? DECLINED : take_array(s, value, &version_leaf, rows, &x->versions);
}

static bool has_key(const node *n, PyObject *key) {
    return n->key == key || (PyUnicode_CheckExact(key) && PyUnicode_Compare(n->key, key) == 0);
}

/* What the key stands for that is the `number`-th of its dict; NULL: nothing. Most dicts have their keys in the order of the one
 * before: that is tried first, and takes no hashing. */
static node *child_named(node *parent, PyObject *key, Py_ssize_t number) {
    if (number >= parent->count) return NULL;
    node *expected = &parent->children[parent->children[number].met];
    if (has_key(expected, key)) return expected;
    for (Py_ssize_t i = 0; i < parent->count; i++) {
        if (!has_key(&parent->children[i], key)) continue;
        parent->children[number].met = i;
        return &parent->children[i];
    }
    return NULL;
}

static int take_tree(Stream *s, node *parent, PyObject *tree, Py_ssize_t rows, extras *x);

static int take_value(Stream *s, node *n, PyObject *value, Py_ssize_t rows, extras *x) {
    switch (n->role) {
    case DONES: return take_end(s, value, 0, rows, x);
    case END: return take_end(s, value, 1, rows, x);
    case VERSION: return take_version(s, value, rows, x);
    case FOLLOWING: x->has_next = true; break;
    case STORED: break;
    }
    return n->column < 0 ? take_tree(s, n, value, rows, x) : take_leaf(s, value, n->column, rows, n->role == FOLLOWING);
}

static int take_tree(Stream *s, node *parent, PyObject *tree, Py_ssize_t rows, extras *x) {
    PyObject *key, *value;
    Py_ssize_t at = 0, number = 0, required = 0;
    if (!PyDict_CheckExact(tree)) return DECLINED;
    while (PyDict_Next(tree, &at, &key, &value)) {
        node *n = child_named(parent, key, number++);
        if (!n) return DECLINED;
        int result = take_value(s, n, value, rows, x);
        if (result != DONE) return result;
        required += n - parent->children < parent->required;
    }
    return required == parent->required ? DONE : DECLINED;
}

static int take_all(Stream *s, PyObject *tree, Py_ssize_t rows, extras *x) {
    *x = (extras){.version = -1};
    return take_tree(s, &s->data, tree, rows, x);
}

static bool is_zero(const leaf *l, const uint8_t *value) {
    uint64_t bits = 0;
    memcpy(&bits, value, (size_t)l->itemsize);
    if (l->kind == 'f') bits &= ~((uint64_t)1 << (8 * l->itemsize - 1)); /* -0.0 */
    return bits == 0;
}

static void release(Stream *s) {
    while (s->kept) Py_DECREF(s->arrays[--s->kept]);
    while (s->held) PyBuffer_Release(&s->views[--s->held]);
}

/* ---- rows of an input ------------------------------------------------------------------------------------------------ */

/* One byte or number for each row. */
typedef struct {
    uint8_t *ended, *terminal;
    int32_t *versions;
} marks;

static int make_marks(marks *m, Py_ssize_t rows) {
    m->versions = malloc((size_t)(rows ? rows : 1) * 6);
    if (!m->versions) return PyErr_NoMemory(), -1;
    m->ended = (uint8_t *)(m->versions + rows);
    m->terminal = m->ended + rows;
    return 0;
}

/* What a row says of its end; `mask` is NULL where transitions have none. */
static void mark_row(const Stream *s, marks *m, Py_ssize_t row, bool given, bool ended, const uint8_t *mask) {
    bool terminal = mask && is_zero(&s->leaves[s->masks], mask);
    m->ended[row] = ended || (!given && terminal);
    m->terminal[row] = terminal;
}

static int write_rows(Stream *s, bool has_next, const marks *m, Py_ssize_t rows, Py_ssize_t bytes) {
    if (s->dones >= 0) s->values[s->dones] = m->ended;
    if (s->ends >= 0) s->values[s->ends] = m->ended;
    erb_input input = {s->values, has_next ? s->nexts : NULL, m->ended, m->terminal, m->versions};
    int status;
    if (bytes < NOT_HELD_BYTES) {
        status = erb_append(s->table->table, s->place, &input, (uint64_t)rows);
    } else {
        s->table->users++;
        Py_BEGIN_ALLOW_THREADS
        status = erb_append(s->table->table, s->place, &input, (uint64_t)rows);
        Py_END_ALLOW_THREADS
        erb_let_go(s->table);
    }
    if (!status) return DONE;
    erb_raise(status);
    return FAILED;
}

static Py_ssize_t row_bytes(const Stream *s) {
    Py_ssize_t bytes = 0;
    for (Py_ssize_t i = 0; i < s->columns; i++) bytes += s->leaves[i].bytes;
    return bytes;
}

/* Let readers that are always overtaken copy what they want; the interpreter lock is theirs meanwhile. */
static void hold_back(const Stream *s) {
    uint64_t held, waited = 0;
    while (waited < ERB_HOLD_NS && s->table->table && !s->table->closing && (held = erb_held_ns(s->table->table->header))) {
        if (held > LOOK_NS) held = LOOK_NS;
        struct timespec nap = {0, (long)held};
        Py_BEGIN_ALLOW_THREADS
        nanosleep(&nap, NULL);
        Py_END_ALLOW_THREADS
        waited += held;
    }
}

static bool begin(Stream *s) {
    if (!erb_opened(s->table)) return false;
    if (atomic_load_explicit(&s->table->table->header->held_until, memory_order_relaxed)) {
        hold_back(s);
        if (!erb_opened(s->table)) return false;
    }
    if (pthread_mutex_trylock(&s->mutex)) {
        Py_BEGIN_ALLOW_THREADS
        pthread_mutex_lock(&s->mutex);
        Py_END_ALLOW_THREADS
    }
    const erb_table *table = erb_opened(s->table);
    if (table && table->writers[s->place].number == s->number) return true;
    if (table) erb_raise_writer_closed();
    pthread_mutex_unlock(&s->mutex);
    return false;
}

static PyObject *finish(Stream *s, int result) {
    release(s);
    pthread_mutex_unlock(&s->mutex);
    return result == FAILED ? NULL : PyBool_FromLong(result);
}

/* ---- methods --------------------------------------------------------------------------------------------------------- */

/* insert(data, ended) -> whether it was taken */
static PyObject *stream_insert(Stream *s, PyObject *const *args, Py_ssize_t count) {
    if (count != 2) return PyErr_Format(PyExc_TypeError, "insert takes data and ended");
    int ended = PyObject_IsTrue(args[1]);
    if (ended < 0 || !begin(s)) return NULL;
    extras x;
    uint8_t flags[2];
    int32_t version;
    int result = s->is_fast ? take_all(s, args[0], -1, &x) : DECLINED;
    if (result == DONE) {
        marks m = {&flags[0], &flags[1], &version};
        version = (int32_t)x.version;
        mark_row(s, &m, 0, x.given_end, x.ended, s->masks < 0 ? NULL : s->values[s->masks]);
        flags[0] |= (uint8_t)ended;
        result = write_rows(s, x.has_next, &m, 1, 0);
    }
    return finish(s, result);
}

/* One dict of stacked arrays. */
static int insert_stacked(Stream *s, PyObject *tree, Py_ssize_t rows) {
    extras x;
    marks m;
    int result = take_all(s, tree, rows, &x);
    if (result != DONE) return result;
    if (make_marks(&m, rows)) return FAILED;
    for (Py_ssize_t r = 0; r < rows; r++) {
        bool ended = (x.end_flags[0] && x.end_flags[0][r]) || (x.end_flags[1] && x.end_flags[1][r]);
        long long version = x.version;
        if (x.versions) memcpy(&version, x.versions + 8 * r, 8);
        if (version < INT32_MIN || version > INT32_MAX) result = DECLINED;
        m.versions[r] = (int32_t)version;
        mark_row(s, &m, r, x.given_end, ended, s->masks < 0 ? NULL : s->values[s->masks] + r * s->leaves[s->masks].bytes);
    }
    if (result == DONE) result = write_rows(s, x.has_next, &m, rows, rows * row_bytes(s));
    free(m.versions);
    return result;
}

/* Copies of many transitions, column by column: first those of the data, then the observations that follow. */
typedef struct {
    uint8_t *memory;
    uint8_t **columns; /* 2 * columns */
} pile;

static int make_pile(const Stream *s, pile *p, Py_ssize_t rows) {
    p->columns = malloc(2 * (size_t)(s->columns + 1) * sizeof *p->columns);
    p->memory = malloc(2 * (size_t)(row_bytes(s) * rows) + 1);
    if (!p->columns || !p->memory) return PyErr_NoMemory(), -1;
    uint8_t *at = p->memory;
    for (Py_ssize_t i = 0; i < 2 * s->columns; i++) {
        p->columns[i] = at;
        at += s->leaves[i % s->columns].bytes * rows;
    }
    return 0;
}

static int pile_up(Stream *s, PyObject *list, Py_ssize_t rows, pile *p, marks *m, bool *has_next) {
    for (Py_ssize_t r = 0; r < rows; r++) {
        extras x;
        int result = take_all(s, PyList_GetItem(list, r), -1, &x);
        if (result != DONE || (r && x.has_next != *has_next)) return result == DONE ? DECLINED : result;
        *has_next = x.has_next;
        m->versions[r] = (int32_t)x.version;
        mark_row(s, m, r, x.given_end, x.ended, s->masks < 0 ? NULL : s->values[s->masks]);
        for (Py_ssize_t i = 0; i < s->columns; i++) {
            Py_ssize_t bytes = s->leaves[i].bytes;
            if (i != s->dones && i != s->ends) memcpy(p->columns[i] + r * bytes, s->values[i], (size_t)bytes);
            if (x.has_next && s->table->table->columns[i].kind != ERB_ROWS) memcpy(p->columns[s->columns + i] + r * bytes, s->nexts[i], (size_t)bytes);
        }
        release(s);
    }
    return DONE;
}

static int insert_list(Stream *s, PyObject *list, Py_ssize_t rows) {
    pile p = {0};
    marks m = {0};
    bool has_next = false;
    int result = make_pile(s, &p, rows) || make_marks(&m, rows) ? FAILED : pile_up(s, list, rows, &p, &m, &has_next);
    if (result == DONE) {
        for (Py_ssize_t i = 0; i < s->columns; i++) {
            s->values[i] = p.columns[i];
            s->nexts[i] = p.columns[s->columns + i];
        }
        result = write_rows(s, has_next, &m, rows, rows * row_bytes(s));
    }
    free(p.columns);
    free(p.memory);
    free(m.versions);
    return result;
}

/* How many rows a dict of stacked arrays has, by its first leaf; 0 where that is no array. */
static Py_ssize_t rows_in(const node *parent, PyObject *tree) {
    if (!parent->count || !PyDict_CheckExact(tree)) return 0;
    const node *n = &parent->children[0];
    PyObject *value = PyDict_GetItemWithError(tree, n->key);
    if (value && n->column < 0) return rows_in(n, value);
    Py_ssize_t rows = value && Py_TYPE(value) == type_array ? PyObject_Size(value) : 0;
    PyErr_Clear(); /* an array without dimensions has no length */
    return rows < 0 ? 0 : rows;
}

/* insert_many(batch) -> whether it was taken */
static PyObject *stream_insert_many(Stream *s, PyObject *batch) {
    if (!begin(s)) return NULL;
    int result = DECLINED;
    bool is_list = PyList_CheckExact(batch);
    Py_ssize_t rows = !s->is_fast ? 0 : is_list ? PyList_Size(batch) : rows_in(&s->data, batch);
    if (rows > 0 && !is_list) result = insert_stacked(s, batch, rows);
    if (rows > 0 && is_list && row_bytes(s) <= (Py_ssize_t)MAX_LIST_BYTES / rows / 2) result = insert_list(s, batch, rows);
    return finish(s, result);
}

/* Take bytes of arrays that Python has made to fit: rows * bytes of each. */
static int take_bytes(Stream *s, PyObject *object, Py_ssize_t bytes, const uint8_t **out) {
    Py_buffer *view = &s->views[s->held];
    if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS) < 0) return FAILED;
    s->held++;
    *out = view->buf;
    if (view->len == bytes) return DONE;
    PyErr_Format(PyExc_ValueError, "got %zd bytes, %zd are required", view->len, bytes);
    return FAILED;
}

static int take_columns(Stream *s, PyObject *tuple, Py_ssize_t rows, const uint8_t **out, bool is_next) {
    if (!PyTuple_Check(tuple) || PyTuple_Size(tuple) != s->columns) return PyErr_Format(PyExc_TypeError, "a tuple of %zd arrays is required", s->columns), FAILED;
    for (Py_ssize_t i = 0; i < s->columns; i++) {
        if (is_next && s->table->table->columns[i].kind == ERB_ROWS) continue;
        if (take_bytes(s, PyTuple_GetItem(tuple, i), rows * s->leaves[i].bytes, &out[i]) != DONE) return FAILED;
    }
    return DONE;
}

/* append(rows, values, nexts or None, ended, terminal, versions): all arrays made to fit */
static PyObject *stream_append(Stream *s, PyObject *args) {
    Py_ssize_t rows;
    PyObject *values, *nexts, *ended, *terminal, *versions;
    if (!PyArg_ParseTuple(args, "nOOOOO", &rows, &values, &nexts, &ended, &terminal, &versions) || !begin(s)) return NULL;
    const uint8_t *flags[2], *numbers;
    int result = rows < 0 ? DECLINED : take_columns(s, values, rows, s->values, false);
    if (result == DONE && nexts != Py_None) result = take_columns(s, nexts, rows, s->nexts, true);
    if (result == DONE) result = take_bytes(s, ended, rows, &flags[0]);
    if (result == DONE) result = take_bytes(s, terminal, rows, &flags[1]);
    if (result == DONE) result = take_bytes(s, versions, 4 * rows, &numbers);
    if (result == DONE) {
        erb_input input = {s->values, nexts == Py_None ? NULL : s->nexts, flags[0], flags[1], (const int32_t *)(const void *)numbers};
        s->table->users++;
        int status;
        Py_BEGIN_ALLOW_THREADS
        status = erb_append(s->table->table, s->place, &input, (uint64_t)rows);
        Py_END_ALLOW_THREADS
        erb_let_go(s->table);
        if (status) {
            erb_raise(status);
            result = FAILED;
        }
    }
    return finish(s, result);
}

static PyObject *stream_end(Stream *s, PyObject *unused) {
    (void)unused;
    if (!begin(s)) return NULL;
    int status = erb_end(s->table->table, s->place);
    if (status) erb_raise(status);
    return finish(s, status ? FAILED : DONE);
}

/* Leave; True: a transition was waiting for the observation that follows it, and is dropped. */
static PyObject *stream_close(Stream *s, PyObject *unused) {
    (void)unused;
    if (!s->table->table || s->table->closing) Py_RETURN_FALSE; /* the buffer was closed before, and ended all its writers */
    if (!begin(s)) return PyErr_Clear(), Py_NewRef(Py_False);
    bool was_pending = s->table->table->writers[s->place].pending;
    erb_forget(s->table->table, s->place);
    return finish(s, was_pending);
}

/* ---- the type -------------------------------------------------------------------------------------------------------- */

PyObject *erb_new_stream(Table *table, PyObject *spec) {
    if (!erb_opened(table)) return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(stream_type, Py_tp_alloc);
    Stream *self = (Stream *)alloc(stream_type, 0);
    if (!self) return NULL;
    self->table = (Table *)Py_NewRef((PyObject *)table);
    self->has_mutex = pthread_mutex_init(&self->mutex, NULL) == 0;
    int64_t number;
    if (read_spec(self, spec) == 0) {
        int status = erb_register(table->table, &self->place, &number);
        self->number = number;
        if (!status) return (PyObject *)self;
        erb_raise(status);
    }
    Py_DECREF(self);
    return NULL;
}

static void stream_dealloc(Stream *self) {
    if (self->has_mutex) pthread_mutex_destroy(&self->mutex);
    if (self->data.children) free_node(&self->data);
    for (Py_ssize_t i = 0; self->leaves && i < self->columns; i++) Py_XDECREF(self->leaves[i].dtype);
    free(self->leaves);
    free(self->values);
    free(self->nexts);
    free(self->arrays);
    free(self->views);
    free(self->scratch);
    Py_XDECREF((PyObject *)self->table);
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release_memory = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release_memory(self);
    Py_DECREF(type);
}

#define FAST(function) ((PyCFunction)(void (*)(void))function), METH_FASTCALL

static PyMethodDef stream_methods[] = {{"insert", FAST(stream_insert), NULL},
                                       {"insert_many", (PyCFunction)stream_insert_many, METH_O, NULL},
                                       {"append", (PyCFunction)stream_append, METH_VARARGS, NULL},
                                       {"end", (PyCFunction)stream_end, METH_NOARGS, NULL},
                                       {"close", (PyCFunction)stream_close, METH_NOARGS, NULL},
                                       {NULL, NULL, 0, NULL}};
static PyMemberDef stream_members[] = {{"number", T_LONGLONG, offsetof(Stream, number), READONLY, NULL},
                                       {"place", T_UINT, offsetof(Stream, place), READONLY, NULL},
                                       {NULL, 0, 0, 0, NULL}};
static PyType_Slot stream_slots[] = {{Py_tp_dealloc, stream_dealloc}, {Py_tp_methods, stream_methods}, {Py_tp_members, stream_members}, {0, NULL}};
static PyType_Spec stream_spec = {"edgeml_ipc.data._rows.Stream", sizeof(Stream), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, stream_slots};

static bool is_known(PyObject *numpy) {
    PyObject *array = PyObject_CallMethod(numpy, "zeros", "((ii))", 3, 2), *turned = array ? PyObject_GetAttrString(array, "T") : NULL;
    bool known = turned && erb_array_is_as_known(type_array, array, turned);
    PyErr_Clear();
    Py_XDECREF(array);
    Py_XDECREF(turned);
    return known;
}

int erb_add_stream(PyObject *module) {
    PyObject *numpy = PyImport_ImportModule("numpy");
    if (!numpy) return -1;
    type_array = (PyTypeObject *)PyObject_GetAttrString(numpy, "ndarray");
    type_scalar = (PyTypeObject *)PyObject_GetAttrString(numpy, "generic");
    make_dtype = PyObject_GetAttrString(numpy, "dtype");
    is_array_known = type_array && is_known(numpy);
    Py_DECREF(numpy);
    if (!type_array || !type_scalar || !make_dtype || read_dtype(&flag_leaf) || read_dtype(&version_leaf)) return -1;
    stream_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &stream_spec, NULL);
    return stream_type ? PyModule_AddType(module, stream_type) : -1;
}
