/* A shared page with a place for a message each way: what pingpong.c and mailboxmodule.c do alike. Defines _GNU_SOURCE. */
#ifndef BENCHMARKS_MAILBOX_H
#define BENCHMARKS_MAILBOX_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MESSAGE_BYTES = 64, APART = 128 };

struct mailbox {
    _Alignas(APART) _Atomic uint32_t sequence;
    _Alignas(APART) unsigned char message[MESSAGE_BYTES];
};

struct page {
    struct mailbox ping, pong;
    _Alignas(APART) _Atomic uint32_t over; /* nothing will come: give up waiting */
};

static int use_futex;

static void put(struct mailbox *box, const unsigned char *message, uint32_t sequence) {
    memcpy(box->message, message, MESSAGE_BYTES);
    atomic_store_explicit(&box->sequence, sequence, memory_order_release);
    if (use_futex) syscall(SYS_futex, &box->sequence, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void take(struct mailbox *box, unsigned char *message, uint32_t sequence) {
    uint32_t seen;
    while ((seen = atomic_load_explicit(&box->sequence, memory_order_acquire)) != sequence) {
        if (use_futex) syscall(SYS_futex, &box->sequence, FUTEX_WAIT, seen, NULL, NULL, 0);
    }
    memcpy(message, box->message, MESSAGE_BYTES);
}

#endif
