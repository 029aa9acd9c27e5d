/* Thin binding of the shared-memory core (transports/core.h at the root) on Python's limited API: types and errors, no logic.
 *
 * Longer than 400 lines because the types of one extension module know each other, and share what no other file should see. */
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

enum {
    COPY_UP_TO = 4096,       /* parts of this size or less arrive as bytes, larger ones as Part */
    RELEASE_GIL_FROM = 32768 /* copies of this size or more let other threads run */
};

static PyObject *error_timeout, *error_full, *error_died, *error_large, *error_incompatible, *error_closed, *error_segment;
static PyTypeObject *waiter_type, *link_type, *topic_type, *part_type, *lease_type;

typedef struct {
    PyObject_HEAD
    eipc_waiter *core;
    bool busy;
} Waiter;

typedef struct {
    PyObject_HEAD
    eipc_link *core;
    PyObject *label;
    bool sending;
} Link;

typedef struct {
    PyObject_HEAD
    eipc_topic *core;
} Topic;

/* Keeps a slot pinned and mapped: of a link, or of a topic of this process. */
typedef struct {
    PyObject_HEAD
    eipc_link *link;
    PyObject *topic;
    eipc_map *map;
    _Atomic uint64_t *pin;
} Lease;

/* A read-only buffer: in a leased slot, or in memory of its own. */
typedef struct {
    PyObject_HEAD
    uint8_t *data;
    Py_ssize_t size;
    PyObject *owner; /* the Lease; NULL: data is ours to free */
} Part;

/* ---- errors -------------------------------------------------------------------------------------------------------- */

static PyObject *raise_status(int status, PyObject *label) {
    PyObject *name = label ? label : Py_None;
    switch (status) {
    case EIPC_TIMEOUT: return PyErr_Format(error_timeout, "%S: no room to send before the deadline: the reader does not keep up", name);
    case EIPC_FULL: return PyErr_Format(error_full, "%S: no room to send: the reader does not keep up", name);
    case EIPC_GONE: return PyErr_Format(error_died, "%S: the process on the other side ended or closed the connection", name);
    case EIPC_VIOLATION: return PyErr_Format(error_incompatible, "%S: the other side broke the shared-memory protocol; connection closed", name);
    case EIPC_CLOSED: return PyErr_Format(error_closed, "%S: this side closed the connection", name);
    case EIPC_NO_MEMORY: return PyErr_Format(error_segment, "%S: not enough free memory, or slot budget, for this message", name);
    case EIPC_FORKED:
        return PyErr_Format(error_closed, "%S: opened before fork(); a forked child must open its own (or start it by spawn)", name);
    default: return PyErr_Format(error_segment, "%S: system error: %s", name, strerror(errno));
    }
}

static int64_t deadline_from(double timeout) { return timeout <= 0 ? 0 : eipc_now_ns() + (int64_t)(timeout * 1e9); }

/* None = no end; else seconds, at most ten years. */
static int parse_timeout(PyObject *object, int64_t *deadline_ns) {
    if (object == Py_None) {
        *deadline_ns = -1;
        return 0;
    }
    double seconds = PyFloat_AsDouble(object);
    if (seconds == -1.0 && PyErr_Occurred()) return -1;
    *deadline_ns = seconds > 3e8 ? -1 : deadline_from(seconds);
    return 0;
}

/* ---- Part and Lease ------------------------------------------------------------------------------------------------ */

static void part_dealloc(Part *self) {
    if (self->owner) Py_DECREF(self->owner);
    else free(self->data);
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static int part_getbuffer(Part *self, Py_buffer *view, int flags) {
    return PyBuffer_FillInfo(view, (PyObject *)self, self->data, self->size, 1, flags);
}

static Py_ssize_t part_length(Part *self) { return self->size; }

static PyObject *new_part(uint8_t *data, uint64_t size, PyObject *owner) {
    Part *part = PyObject_New(Part, part_type);
    if (!part) return NULL;
    part->data = data;
    part->size = (Py_ssize_t)size;
    part->owner = owner;
    Py_XINCREF(owner);
    return (PyObject *)part;
}

static PyObject *copied_part(const uint8_t *data, uint64_t size) {
    if (size <= COPY_UP_TO) return PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)size);
    uint8_t *copy = aligned_alloc(64, (size + 63) & ~(uint64_t)63);
    if (!copy) return PyErr_NoMemory();
    if (size >= RELEASE_GIL_FROM) {
        Py_BEGIN_ALLOW_THREADS memcpy(copy, data, size);
        Py_END_ALLOW_THREADS
    } else {
        memcpy(copy, data, size);
    }
    PyObject *part = new_part(copy, size, NULL);
    if (!part) free(copy);
    return part;
}

static void lease_dealloc(Lease *self) {
    if (self->link) {
        eipc_release_pin(self->link, self->map, self->pin);
        eipc_link_unref(self->link);
    } else {
        atomic_store_explicit(self->pin, 0, memory_order_seq_cst);
        eipc_map_unref(self->map);
        Py_XDECREF(self->topic);
    }
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* Takes over the message's pin and map. */
static PyObject *new_lease(eipc_link *link, PyObject *topic, eipc_message *message) {
    Lease *lease = PyObject_New(Lease, lease_type);
    if (!lease) return NULL;
    lease->link = link;
    lease->topic = topic;
    lease->map = message->map;
    lease->pin = message->pin;
    if (link) eipc_link_ref(link);
    Py_XINCREF(topic);
    return (PyObject *)lease;
}

static void drop_slot(eipc_link *link, eipc_message *message) {
    if (!message->map) return;
    if (link) {
        eipc_release_pin(link, message->map, message->pin);
    } else {
        atomic_store_explicit(message->pin, 0, memory_order_seq_cst);
        eipc_map_unref(message->map);
    }
}

/* All parts of a message: small ones copied, large ones leased where the message may be. The slot's pin is the lease's, or
 * released here. Returns NULL with no error set if the peer's table is not sound. */
static PyObject *read_parts(eipc_link *link, PyObject *topic, eipc_message *message) {
    PyObject *list = PyList_New((Py_ssize_t)message->count), *lease = NULL;
    uint64_t offset = 0, total = 0;
    for (uint32_t i = 0; list && i < message->count; i++) {
        uint64_t at = offset, bytes;
        PyObject *part = NULL;
        if (eipc_read_length(message, i, &offset, &bytes) == EIPC_OK && (total += bytes, !link || total <= link->max_message_bytes)) {
            bool copy = bytes <= COPY_UP_TO || !message->map || message->must_copy;
            if (!copy && !lease) lease = new_lease(link, topic, message);
            if (copy) part = copied_part(message->body + at, bytes);
            else if (lease) part = new_part((uint8_t *)message->body + at, bytes, lease);
        }
        if (part) PyList_SetItem(list, (Py_ssize_t)i, part);
        else Py_CLEAR(list);
    }
    if (list && link) link->count.bytes_received += total;
    if (list && link && message->must_copy) link->count.copied_out++;
    if (list && link) eipc_end_read(link, message); /* before the pin goes: rx_head says "consumed" */
    if (lease) Py_DECREF(lease);
    else drop_slot(link, message);
    return list;
}

/* ---- reading the caller's parts ------------------------------------------------------------------------------------ */

typedef struct {
    eipc_part few[16];
    Py_buffer few_views[16];
    eipc_part *parts;
    Py_buffer *views;
    uint32_t count;
    uint64_t bytes;
} Outgoing;

static void release_outgoing(Outgoing *out) {
    for (uint32_t i = 0; i < out->count; i++) PyBuffer_Release(&out->views[i]);
    if (out->parts != out->few) {
        PyMem_Free(out->parts);
        PyMem_Free(out->views);
    }
}

static int parse_outgoing(PyObject *object, Outgoing *out) {
    out->count = 0;
    out->bytes = 0;
    out->parts = out->few;
    out->views = out->few_views;
    bool is_list = PyList_Check(object);
    if (!is_list && !PyTuple_Check(object)) {
        PyErr_SetString(PyExc_TypeError, "parts must be a list or a tuple of buffers");
        return -1;
    }
    Py_ssize_t count = is_list ? PyList_Size(object) : PyTuple_Size(object);
    if (count < 1 || count > EIPC_MAX_PARTS) {
        PyErr_Format(error_large, "a message has 1 to %d parts, not %zd", EIPC_MAX_PARTS, count);
        return -1;
    }
    if (count > 16) {
        out->parts = PyMem_Malloc((size_t)count * sizeof *out->parts);
        out->views = PyMem_Malloc((size_t)count * sizeof *out->views);
        if (!out->parts || !out->views) {
            release_outgoing(out);
            PyErr_NoMemory();
            return -1;
        }
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = is_list ? PyList_GetItem(object, i) : PyTuple_GetItem(object, i);
        if (!item || PyObject_GetBuffer(item, &out->views[i], PyBUF_SIMPLE)) {
            release_outgoing(out);
            return -1;
        }
        out->parts[i].data = out->views[i].buf;
        out->parts[i].bytes = (size_t)out->views[i].len;
        out->bytes += (uint64_t)out->views[i].len;
        out->count++;
    }
    return 0;
}

/* ---- Link ---------------------------------------------------------------------------------------------------------- */

static PyObject *link_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"waiter", "sock_fd", "ring_bytes", "max_message_bytes", "slot_budget_bytes", "label", NULL};
    Waiter *waiter;
    int sock;
    unsigned long long ring_bytes, max_message, budget;
    PyObject *label;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!iKKKU", names, waiter_type, &waiter, &sock, &ring_bytes, &max_message, &budget, &label))
        return NULL;
    if (ring_bytes < 4096 || ring_bytes > (1ull << 30) || (ring_bytes & (ring_bytes - 1)))
        return PyErr_Format(PyExc_ValueError, "ring_bytes must be a power of two from 4096 to 2**30, not %llu", ring_bytes);
    eipc_link *core;
    int status;
    Py_BEGIN_ALLOW_THREADS status = eipc_link_create(waiter->core, sock, ring_bytes, max_message, budget, &core);
    Py_END_ALLOW_THREADS
    if (status) return raise_status(status, label);
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Link *self = (Link *)alloc(type, 0);
    if (!self) {
        eipc_link_unref(core);
        return NULL;
    }
    self->core = core;
    core->owner = self;
    self->label = Py_NewRef(label);
    return (PyObject *)self;
}

static void link_dealloc(Link *self) {
    eipc_link_close(self->core);
    eipc_link_shed(self->core); /* leases may keep the rest for long */
    eipc_link_unref(self->core);
    Py_XDECREF(self->label);
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *link_endpoint_fd(Link *self, PyObject *unused) {
    (void)unused;
    return PyLong_FromLong(self->core->mine->fd);
}

static PyObject *challenge(const eipc_endpoint *endpoint) { return PyBytes_FromStringAndSize((const char *)endpoint->challenge, EIPC_CHALLENGE); }

static PyObject *link_challenge(Link *self, PyObject *unused) {
    (void)unused;
    return challenge(self->core->me);
}

static PyObject *link_attach(Link *self, PyObject *args) {
    int endpoint_fd, board_fd, pidfd;
    unsigned topics;
    if (!PyArg_ParseTuple(args, "iiiI", &endpoint_fd, &board_fd, &pidfd, &topics)) return NULL;
    if (pidfd >= 0) eipc_link_watch_process(self->core, pidfd);
    eipc_map *endpoint, *board;
    int status = eipc_map_attach(endpoint_fd, sizeof(eipc_endpoint), 0, &endpoint);
    int board_status = eipc_map_attach(board_fd, sizeof(eipc_board), 0, &board);
    if (status || board_status) {
        if (!status) eipc_map_unref(endpoint);
        if (!board_status) eipc_map_unref(board);
        return raise_status(status ? status : board_status, self->label);
    }
    status = eipc_link_attach(self->core, endpoint, board);
    if (status) return raise_status(status, self->label);
    eipc_link_subscribe(self->core, topics);
    return challenge(self->core->peer);
}

static PyObject *link_send(Link *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 2) return PyErr_Format(PyExc_TypeError, "send(parts, timeout) takes 2 arguments, not %zd", count);
    double timeout = PyFloat_AsDouble(args[1]);
    if (timeout == -1.0 && PyErr_Occurred()) return NULL;
    if (self->sending) return PyErr_Format(PyExc_RuntimeError, "%S: two threads send on one connection", self->label);
    Outgoing out;
    if (parse_outgoing(args[0], &out)) return NULL;
    self->sending = true;
    int status = out.bytes < RELEASE_GIL_FROM ? eipc_send(self->core, out.parts, out.count, 0) : EIPC_FULL;
    if (status == EIPC_FULL && (timeout > 0 || out.bytes >= RELEASE_GIL_FROM)) {
        int64_t deadline_ns = deadline_from(timeout);
        do {
            Py_BEGIN_ALLOW_THREADS status = eipc_send(self->core, out.parts, out.count, deadline_ns);
            Py_END_ALLOW_THREADS
        } while (status == EIPC_INTERRUPTED && PyErr_CheckSignals() == 0);
    }
    self->sending = false;
    uint64_t bytes = out.bytes;
    release_outgoing(&out);
    if (status == EIPC_OK) Py_RETURN_NONE;
    if (status == EIPC_INTERRUPTED) return NULL; /* a signal handler raised */
    if (status == EIPC_TOO_LARGE)
        return PyErr_Format(error_large, "%S: message of %llu bytes is over the limit of %llu (max_message_bytes)", self->label,
                            (unsigned long long)bytes, (unsigned long long)self->core->max_message_bytes);
    return raise_status(status, self->label);
}

static PyObject *link_open_topics(Link *self, PyObject *unused) {
    (void)unused;
    int status = eipc_link_open_topics(self->core);
    if (status) return raise_status(status, self->label);
    Py_RETURN_NONE;
}

static PyObject *link_close(Link *self, PyObject *unused) {
    (void)unused;
    eipc_link_close(self->core);
    Py_RETURN_NONE;
}

static int link_status(const eipc_link *core) {
    if (atomic_load(&core->closed)) return EIPC_CLOSED;
    if (atomic_load(&core->violated)) return EIPC_VIOLATION;
    if (atomic_load(&core->gone)) return EIPC_GONE;
    return core->forks == eipc_fork_count() ? EIPC_OK : EIPC_FORKED;
}

static PyObject *link_check(Link *self, PyObject *unused) {
    (void)unused;
    int status = link_status(self->core);
    if (status) return raise_status(status, self->label);
    Py_RETURN_NONE;
}

static PyObject *link_alive(Link *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(link_status(self->core) == EIPC_OK);
}

static PyObject *link_stats(Link *self, PyObject *unused) {
    (void)unused;
    const eipc_link *core = self->core;
    const eipc_link_counters *c = &core->count;
    uint64_t in_flight = 0;
    if (core->peer) in_flight = core->tx_tail - atomic_load(&core->peer->rx_head);
    return Py_BuildValue("{sKsKsKsKsKsKsKsKsKsKsKsK}", "messages_sent", c->messages_sent, "messages_received", c->messages_received,
                         "bytes_sent", c->bytes_sent, "bytes_received", c->bytes_received, "slots_created", c->slots_created,
                         "slots_discarded", c->slots_discarded, "slot_bytes", c->slot_bytes, "copied_out", c->copied_out, "doorbells",
                         c->doorbells, "waits_for_room", c->waits_for_room, "ring_used_bytes",
                         in_flight <= core->tx_capacity ? in_flight : 0, "ring_capacity_bytes", core->tx_capacity);
}

/* ---- Waiter -------------------------------------------------------------------------------------------------------- */

static PyObject *waiter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "", names)) return NULL;
    eipc_waiter *core;
    int status = eipc_waiter_create(&core);
    if (status) return raise_status(status, NULL);
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Waiter *self = (Waiter *)alloc(type, 0);
    if (!self) {
        eipc_waiter_unref(core);
        return NULL;
    }
    self->core = core;
    return (PyObject *)self;
}

static void waiter_dealloc(Waiter *self) {
    while (self->core->link_count) {
        eipc_link *link = self->core->links[self->core->link_count - 1];
        eipc_waiter_remove(self->core, link);
        Py_DECREF((PyObject *)link->owner);
    }
    eipc_waiter_unref(self->core);
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *waiter_board_fd(Waiter *self, PyObject *unused) {
    (void)unused;
    return PyLong_FromLong(self->core->board_map->fd);
}

static Link *link_argument(PyObject *object) {
    if (PyObject_TypeCheck(object, link_type)) return (Link *)object;
    PyErr_SetString(PyExc_TypeError, "expected a Link");
    return NULL;
}

static PyObject *waiter_add(Waiter *self, PyObject *object) {
    Link *link = link_argument(object);
    if (!link) return NULL;
    if (!link->core->peer) return PyErr_Format(PyExc_ValueError, "%S: not attached to its peer", link->label);
    int status = eipc_waiter_add(self->core, link->core);
    if (status) return raise_status(status, link->label);
    Py_INCREF(object);
    Py_RETURN_NONE;
}

static void take_off(Waiter *self, eipc_link *core) {
    size_t before = self->core->link_count;
    eipc_waiter_remove(self->core, core);
    if (self->core->link_count < before) Py_DECREF((PyObject *)core->owner);
}

static PyObject *waiter_remove(Waiter *self, PyObject *object) {
    Link *link = link_argument(object);
    if (!link) return NULL;
    take_off(self, link->core);
    Py_RETURN_NONE;
}

static PyObject *waiter_watch(Waiter *self, PyObject *object) {
    long fd = PyLong_AsLong(object);
    if (fd == -1 && PyErr_Occurred()) return NULL;
    int status = eipc_waiter_watch(self->core, (int)fd);
    if (status) return raise_status(status, NULL);
    Py_RETURN_NONE;
}

static PyObject *waiter_wake(Waiter *self, PyObject *unused) {
    (void)unused;
    eipc_waiter_wake(self->core);
    Py_RETURN_NONE;
}

/* (link, parts) of a readable link; (link, None) at its end, when it is taken off the waiter. NULL without an error set: it
 * was readable for padding only. */
static PyObject *read_event(Waiter *self, eipc_link *core) {
    eipc_message message;
    int status = eipc_begin_read(core, &message);
    if (status == EIPC_FULL) return NULL;
    PyObject *parts = status == EIPC_OK ? read_parts(core, NULL, &message) : NULL;
    if (!parts && PyErr_Occurred()) return NULL;
    if (!parts && status == EIPC_OK) eipc_link_violation(core);
    PyObject *event = PyTuple_Pack(2, (PyObject *)core->owner, parts ? parts : Py_None);
    if (!parts) take_off(self, core);
    Py_XDECREF(parts);
    return event;
}

/* Wait for the first event. Returns it; Py_None for a wake or a watched fd, Py_False after the timeout. */
static PyObject *wait_event(Waiter *self, PyObject *timeout) {
    int64_t deadline_ns = 0;
    bool have_deadline = false;
    if (self->busy) return PyErr_Format(PyExc_RuntimeError, "two threads wait on one waiter");
    for (;;) {
        eipc_link *core = eipc_waiter_try(self->core);
        int status = EIPC_OK;
        if (!core) {
            if (!have_deadline && parse_timeout(timeout, &deadline_ns)) return NULL;
            have_deadline = true;
            self->busy = true;
            Py_BEGIN_ALLOW_THREADS status = eipc_waiter_wait(self->core, deadline_ns, &core);
            Py_END_ALLOW_THREADS
            self->busy = false;
        }
        if (status == EIPC_INTERRUPTED) {
            if (PyErr_CheckSignals()) return NULL;
            continue;
        }
        if (status == EIPC_TIMEOUT) Py_RETURN_FALSE;
        if (status) return raise_status(status, NULL);
        if (!core) Py_RETURN_NONE;
        PyObject *event = read_event(self, core);
        if (event || PyErr_Occurred()) return event;
    }
}

static PyObject *waiter_recv(Waiter *self, PyObject *timeout) { return wait_event(self, timeout); }

static PyObject *waiter_recv_many(Waiter *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 2) return PyErr_Format(PyExc_TypeError, "recv_many(timeout, limit) takes 2 arguments, not %zd", count);
    long limit = PyLong_AsLong(args[1]);
    if (limit == -1 && PyErr_Occurred()) return NULL;
    PyObject *event = wait_event(self, args[0]), *events = event ? PyList_New(0) : NULL;
    while (events && event && PyTuple_CheckExact(event)) {
        if (PyList_Append(events, event)) Py_CLEAR(events);
        Py_CLEAR(event);
        eipc_link *core = events && PyList_Size(events) < limit ? eipc_waiter_try(self->core) : NULL;
        if (core) event = read_event(self, core);
        if (events && !event) PyErr_Clear(); /* no memory for this one: it stays where it is, and those before it must not be lost */
    }
    Py_XDECREF(event);
    return events;
}

static PyObject *waiter_stats(Waiter *self, PyObject *unused) {
    (void)unused;
    const eipc_waiter_counters *c = &self->core->count;
    return Py_BuildValue("{sKsKsK}", "wakeups_by_spin", c->spins_won, "spins_lost", c->spins_lost, "wakeups_by_sleep", c->sleeps);
}

/* ---- Topic --------------------------------------------------------------------------------------------------------- */

static PyObject *topic_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"waiter", "index", "slot_budget_bytes", NULL};
    Waiter *waiter;
    int index;
    unsigned long long budget;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!iK", names, waiter_type, &waiter, &index, &budget)) return NULL;
    if (index < 0 || index >= EIPC_TOPICS) return PyErr_Format(PyExc_ValueError, "topic must be 0 to %d, not %d", EIPC_TOPICS - 1, index);
    eipc_topic *core;
    int status = eipc_topic_create(waiter->core, index, budget, &core);
    if (status) return raise_status(status, NULL);
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Topic *self = (Topic *)alloc(type, 0);
    if (!self) {
        eipc_topic_destroy(core);
        return NULL;
    }
    self->core = core;
    return (PyObject *)self;
}

static void topic_dealloc(Topic *self) {
    eipc_topic_destroy(self->core);
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *topic_add(Topic *self, PyObject *object) {
    Link *link = link_argument(object);
    if (!link) return NULL;
    int status = eipc_topic_add(self->core, link->core);
    if (status) return raise_status(status, link->label);
    Py_RETURN_NONE;
}

static PyObject *topic_remove(Topic *self, PyObject *object) {
    Link *link = link_argument(object);
    if (!link) return NULL;
    eipc_topic_remove(self->core, link->core);
    Py_RETURN_NONE;
}

static PyObject *topic_publish(Topic *self, PyObject *parts) {
    Outgoing out;
    if (parse_outgoing(parts, &out)) return NULL;
    int status;
    Py_BEGIN_ALLOW_THREADS status = eipc_topic_publish(self->core, out.parts, out.count);
    Py_END_ALLOW_THREADS
    release_outgoing(&out);
    if (status == EIPC_OK) Py_RETURN_NONE;
    if (status == EIPC_FULL)
        return PyErr_Format(error_full, "topic %d: every slot within the budget of %llu bytes is held by a subscriber", self->core->index,
                            (unsigned long long)self->core->budget_bytes);
    return raise_status(status, NULL);
}

static PyObject *topic_hold(Topic *self, PyObject *unused) {
    (void)unused;
    eipc_message message;
    if (eipc_topic_hold(self->core, &message)) Py_RETURN_NONE;
    return read_parts(NULL, (PyObject *)self, &message);
}

static PyObject *topic_stats(Topic *self, PyObject *unused) {
    (void)unused;
    const eipc_topic_counters *c = &self->core->count;
    uint64_t slot_bytes = 0;
    for (int i = 0; i < EIPC_TOPIC_SLOTS; i++)
        if (self->core->slots[i].map) slot_bytes += self->core->slots[i].map->bytes;
    return Py_BuildValue("{sKsKsKsKsKsn}", "publishes", c->publishes, "publishes_refused", c->refused, "slots_created", c->slots_created,
                         "slots_discarded", c->slots_discarded, "slot_bytes", slot_bytes, "subscribers", (Py_ssize_t)self->core->subscriber_count);
}

/* ---- the module ---------------------------------------------------------------------------------------------------- */

static PyMethodDef waiter_methods[] = {{"board_fd", (PyCFunction)waiter_board_fd, METH_NOARGS, NULL},
                                       {"add", (PyCFunction)waiter_add, METH_O, NULL},
                                       {"remove", (PyCFunction)waiter_remove, METH_O, NULL},
                                       {"watch", (PyCFunction)waiter_watch, METH_O, NULL},
                                       {"wake", (PyCFunction)waiter_wake, METH_NOARGS, NULL},
                                       {"recv", (PyCFunction)waiter_recv, METH_O, NULL},
                                       {"recv_many", (PyCFunction)(void (*)(void))waiter_recv_many, METH_FASTCALL, NULL},
                                       {"stats", (PyCFunction)waiter_stats, METH_NOARGS, NULL},
                                       {NULL, NULL, 0, NULL}};
static PyMethodDef link_methods[] = {{"endpoint_fd", (PyCFunction)link_endpoint_fd, METH_NOARGS, NULL},
                                     {"challenge", (PyCFunction)link_challenge, METH_NOARGS, NULL},
                                     {"attach", (PyCFunction)link_attach, METH_VARARGS, NULL},
                                     {"send", (PyCFunction)(void (*)(void))link_send, METH_FASTCALL, NULL},
                                     {"check", (PyCFunction)link_check, METH_NOARGS, NULL},
                                     {"open_topics", (PyCFunction)link_open_topics, METH_NOARGS, NULL},
                                     {"close", (PyCFunction)link_close, METH_NOARGS, NULL},
                                     {"stats", (PyCFunction)link_stats, METH_NOARGS, NULL},
                                     {NULL, NULL, 0, NULL}};
static PyGetSetDef link_getset[] = {{"alive", (getter)link_alive, NULL, NULL, NULL}, {NULL, NULL, NULL, NULL, NULL}};
static PyMethodDef topic_methods[] = {{"add", (PyCFunction)topic_add, METH_O, NULL},
                                      {"remove", (PyCFunction)topic_remove, METH_O, NULL},
                                      {"publish", (PyCFunction)topic_publish, METH_O, NULL},
                                      {"hold", (PyCFunction)topic_hold, METH_NOARGS, NULL},
                                      {"stats", (PyCFunction)topic_stats, METH_NOARGS, NULL},
                                      {NULL, NULL, 0, NULL}};

static PyType_Slot waiter_slots[] = {{Py_tp_new, waiter_new}, {Py_tp_dealloc, waiter_dealloc}, {Py_tp_methods, waiter_methods}, {0, NULL}};
static PyType_Slot link_slots[] = {{Py_tp_new, link_new}, {Py_tp_dealloc, link_dealloc}, {Py_tp_methods, link_methods}, {Py_tp_getset, link_getset}, {0, NULL}};
static PyType_Slot topic_slots[] = {{Py_tp_new, topic_new}, {Py_tp_dealloc, topic_dealloc}, {Py_tp_methods, topic_methods}, {0, NULL}};
static PyType_Slot part_slots[] = {{Py_tp_dealloc, part_dealloc}, {Py_bf_getbuffer, part_getbuffer}, {Py_sq_length, part_length}, {0, NULL}};
static PyType_Slot lease_slots[] = {{Py_tp_dealloc, lease_dealloc}, {0, NULL}};

static const char module_name[] = "edgeml_ipc.transports._core";

static PyTypeObject *add_type(PyObject *module, const char *name, size_t size, unsigned flags, PyType_Slot *slots) {
    PyType_Spec spec = {name, (int)size, 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | flags, slots};
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
    if (type && PyModule_AddType(module, type) < 0) Py_CLEAR(type);
    return type;
}

static int load_errors(void) {
    static const struct {
        const char *name;
        PyObject **place;
    } wanted[] = {{"TimeoutError", &error_timeout},       {"BufferFull", &error_full},         {"PeerDied", &error_died},
                  {"MessageTooLarge", &error_large},      {"IncompatiblePeer", &error_incompatible},
                  {"ConnectionClosed", &error_closed},    {"SegmentError", &error_segment}};
    PyObject *errors = PyImport_ImportModule("edgeml_ipc.errors");
    for (size_t i = 0; errors && i < sizeof wanted / sizeof *wanted; i++)
        if (!(*wanted[i].place = PyObject_GetAttrString(errors, wanted[i].name))) Py_CLEAR(errors);
    Py_XDECREF(errors);
    return errors ? 0 : -1;
}

static int module_exec(PyObject *module) {
    eipc_fork_count(); /* installs the fork handler */
    const unsigned hidden = Py_TPFLAGS_DISALLOW_INSTANTIATION;
    return load_errors() || !(waiter_type = add_type(module, "edgeml_ipc.transports._core.Waiter", sizeof(Waiter), 0, waiter_slots)) ||
           !(link_type = add_type(module, "edgeml_ipc.transports._core.Link", sizeof(Link), 0, link_slots)) ||
           !(topic_type = add_type(module, "edgeml_ipc.transports._core.Topic", sizeof(Topic), 0, topic_slots)) ||
           !(part_type = add_type(module, "edgeml_ipc.transports._core.Part", sizeof(Part), hidden, part_slots)) ||
           !(lease_type = add_type(module, "edgeml_ipc.transports._core.Lease", sizeof(Lease), hidden, lease_slots))
               ? -1
               : 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};
static struct PyModuleDef module_def = {PyModuleDef_HEAD_INIT, module_name, NULL, 0, NULL, module_slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&module_def); }
