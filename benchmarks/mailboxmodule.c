/* The spinning half of pingpong.c, called from Python: what a round trip of 64 bytes costs at the least where both sides are Python.
 *
 * attach(fd) maps the page; exchange(message) -> bytes puts one and waits for the other; take() -> bytes or None, give(message); end(). */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include "mailbox.h"

#include <Python.h>
#include <stdbool.h>
#include <sys/mman.h>

static struct page *page;
static uint32_t sequence;

static PyObject *attach(PyObject *module, PyObject *fd) {
    (void)module;
    page = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, (int)PyLong_AsLong(fd), 0);
    if (page == MAP_FAILED) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static bool put_buffer(struct mailbox *box, PyObject *message, uint32_t number) {
    Py_buffer view;
    if (PyObject_GetBuffer(message, &view, PyBUF_SIMPLE) != 0) return false;
    if (view.len == MESSAGE_BYTES) put(box, view.buf, number);
    else PyErr_Format(PyExc_ValueError, "a message has %d bytes", MESSAGE_BYTES);
    PyBuffer_Release(&view);
    return !PyErr_Occurred();
}

static PyObject *wait_for(struct mailbox *box, uint32_t number) {
    while (atomic_load_explicit(&box->sequence, memory_order_acquire) != number)
        if (atomic_load_explicit(&page->over, memory_order_relaxed)) Py_RETURN_NONE;
    return PyBytes_FromStringAndSize((const char *)box->message, MESSAGE_BYTES);
}

static PyObject *exchange(PyObject *module, PyObject *message) {
    (void)module;
    return put_buffer(&page->ping, message, ++sequence) ? wait_for(&page->pong, sequence) : NULL;
}

static PyObject *take_one(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return wait_for(&page->ping, ++sequence);
}

static PyObject *give(PyObject *module, PyObject *message) {
    (void)module;
    if (!put_buffer(&page->pong, message, sequence)) return NULL;
    Py_RETURN_NONE;
}

static PyObject *end(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    atomic_store(&page->over, 1);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"attach", attach, METH_O, NULL}, {"exchange", exchange, METH_O, NULL}, {"take", take_one, METH_NOARGS, NULL},
    {"give", give, METH_O, NULL},     {"end", end, METH_NOARGS, NULL},      {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "mailbox", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_mailbox(void) { return PyModule_Create(&definition); }
