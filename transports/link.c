/* One connection: a SEQPACKET socket that is fd channel, doorbell and death notice at once, and two endpoint segments.
 *
 * Packets: one byte 'B' rings the doorbell; 'S' with one fd announces a slot; 'T' opens the topics, all of whose slots have
 * been announced. The end of the socket, or of the peer's
 * process (its pidfd: a forked child that inherited the socket would hide its death), ends the connection.
 */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

static const char doorbell_packet = 'B';
static const char slot_packet = 'S';
static const char topics_packet = 'T';

typedef struct {
    char type;
    uint8_t pad;
    int16_t topic; /* -1: a slot of the connection's own */
    uint32_t slot;
    uint32_t generation;
    uint32_t pad2;
    uint64_t bytes;
} announcement;

static bool power_of_two(uint64_t n) { return n && (n & (n - 1)) == 0; }

int eipc_link_create(eipc_waiter *waiter, int sock, uint64_t ring_bytes, uint64_t max_message_bytes, uint64_t slot_budget_bytes,
                     eipc_link **out) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t header = (sizeof(eipc_endpoint) + page - 1) / page * page;
    eipc_link *link = calloc(1, sizeof *link);
    int status = link ? eipc_map_create(header + ring_bytes, &link->mine) : EIPC_NO_MEMORY;
    if (status) {
        free(link);
        close(sock);
        return status;
    }
    link->sock = sock;
    link->pidfd = -1;
    link->forks = eipc_fork_count();
    link->max_message_bytes = max_message_bytes;
    link->slot_budget_bytes = slot_budget_bytes;
    link->me = (eipc_endpoint *)(void *)link->mine->addr;
    link->me->magic = EIPC_MAGIC_ENDPOINT;
    link->me->version = EIPC_VERSION;
    link->me->header_bytes = header;
    link->me->capacity = link->tx_capacity = ring_bytes;
    link->tx_ring = link->mine->addr + header;
    pthread_mutex_init(&link->packets, NULL);
    atomic_init(&link->refs, 1);
    eipc_waiter_ref(waiter);
    link->waiter = waiter;
    if (getrandom(link->me->challenge, EIPC_CHALLENGE, 0) != EIPC_CHALLENGE) {
        eipc_link_unref(link);
        return EIPC_SYSTEM;
    }
    *out = link;
    return EIPC_OK;
}

int eipc_link_attach(eipc_link *link, eipc_map *endpoint, eipc_map *board) {
    link->theirs = endpoint;
    link->their_board = board;
    const eipc_endpoint *peer = (const eipc_endpoint *)(const void *)endpoint->addr;
    const eipc_board *peer_board = (const eipc_board *)(const void *)board->addr;
    uint64_t header = peer->header_bytes, capacity = peer->capacity;
    if (endpoint->bytes < sizeof *peer || board->bytes < sizeof *peer_board || peer->magic != EIPC_MAGIC_ENDPOINT ||
        peer->version != EIPC_VERSION || peer_board->magic != EIPC_MAGIC_BOARD || peer_board->version != EIPC_VERSION ||
        header < sizeof *peer || header > endpoint->bytes || !power_of_two(capacity) || capacity < 4096 ||
        capacity > endpoint->bytes - header)
        return EIPC_VIOLATION;
    link->peer = peer;
    link->peer_board = peer_board;
    link->rx_ring = endpoint->addr + header;
    link->rx_capacity = capacity;
    return EIPC_OK;
}

void eipc_link_watch_process(eipc_link *link, int pidfd) { link->pidfd = pidfd; }

void eipc_link_subscribe(eipc_link *link, uint32_t topics) { link->wanted_topics = topics & ((1u << EIPC_TOPICS) - 1); }

void eipc_link_close(eipc_link *link) {
    if (atomic_exchange(&link->closed, true)) return;
    if (link->forks == eipc_fork_count()) shutdown(link->sock, SHUT_RDWR);
}

static void forget(eipc_map **place) {
    eipc_map_unref(*place);
    *place = NULL;
}

void eipc_link_shed(eipc_link *link) {
    for (int i = 0; i < EIPC_SLOTS; i++) {
        eipc_slot_discard(&link->tx_slots[i]); /* never rewritten: the peer's views may outlive the connection */
        forget(&link->rx_slots[i]);
    }
    for (int t = 0; t < EIPC_TOPICS; t++)
        for (int i = 0; i < EIPC_TOPIC_SLOTS; i++) forget(&link->rx_topic_slots[t][i]);
}

void eipc_link_ref(eipc_link *link) { atomic_fetch_add_explicit(&link->refs, 1, memory_order_relaxed); }

void eipc_link_unref(eipc_link *link) {
    if (atomic_fetch_sub_explicit(&link->refs, 1, memory_order_acq_rel) != 1) return;
    eipc_link_shed(link);
    close(link->sock);
    if (link->pidfd >= 0) close(link->pidfd);
    eipc_map_unref(link->mine);
    eipc_map_unref(link->theirs);
    eipc_map_unref(link->their_board);
    pthread_mutex_destroy(&link->packets);
    eipc_waiter_unref(link->waiter);
    free(link);
}

int eipc_link_violation(eipc_link *link) {
    atomic_store(&link->violated, true);
    shutdown(link->sock, SHUT_RDWR);
    return EIPC_VIOLATION;
}

/* ---- the doorbell -------------------------------------------------------------------------------------------------- */

static void ring(eipc_link *link) {
    atomic_fetch_add_explicit(&link->count.doorbells, 1, memory_order_relaxed);
    if (send(link->sock, &doorbell_packet, 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1) return;
    /* A full socket needs no further byte to be readable. */
    if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN) atomic_store(&link->gone, true);
}

static void ring_for(eipc_link *link, const _Atomic uint32_t *sleeping_epoch, _Atomic uint32_t *rung_for) {
    uint32_t epoch = atomic_load_explicit(sleeping_epoch, memory_order_seq_cst);
    if (!(epoch & 1) || atomic_load_explicit(rung_for, memory_order_relaxed) == epoch) return;
    atomic_store_explicit(rung_for, epoch, memory_order_relaxed);
    ring(link);
}

void eipc_link_ring_if_parked(eipc_link *link) { ring_for(link, &link->peer_board->park_epoch, &link->rung_for_park); }

void eipc_link_ring_for_room(eipc_link *link) { ring_for(link, &link->peer->space_epoch, &link->rung_for_space); }

/* ---- packets ------------------------------------------------------------------------------------------------------- */

static int packet_failed(eipc_link *link) {
    if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN) {
        atomic_store(&link->gone, true);
        return EIPC_GONE;
    }
    /* A peer that leaves hundreds of packets unread does not keep the protocol. */
    return errno == EAGAIN ? eipc_link_violation(link) : EIPC_SYSTEM;
}

int eipc_link_announce(eipc_link *link, int topic, uint32_t slot, const eipc_map *map) {
    announcement body = {slot_packet, 0, (int16_t)topic, slot, map->generation, 0, map->bytes};
    struct iovec data = {&body, sizeof body};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    memset(&control, 0, sizeof control);
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &map->fd, sizeof(int));
    return sendmsg(link->sock, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)sizeof body ? EIPC_OK : packet_failed(link);
}

int eipc_link_open_topics(eipc_link *link) {
    return send(link->sock, &topics_packet, 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1 ? EIPC_OK : packet_failed(link);
}

static void take_slot(eipc_link *link, const announcement *body, int fd) {
    bool own = body->topic == -1;
    bool known = own ? body->slot < EIPC_SLOTS : body->topic >= 0 && body->topic < EIPC_TOPICS && body->slot < EIPC_TOPIC_SLOTS;
    eipc_map *map;
    if (!known) close(fd);
    if (!known || eipc_map_attach(fd, body->bytes, body->generation, &map)) {
        eipc_link_violation(link);
        return;
    }
    eipc_map **place = own ? &link->rx_slots[body->slot] : &link->rx_topic_slots[body->topic][body->slot];
    eipc_map_unref(*place); /* leases hold references of their own */
    *place = map;
}

/* The fds of a packet: the first is returned, others, which only a hostile peer sends, are closed. */
static int first_fd(struct msghdr *message) {
    int first = -1;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (first < 0) first = fd;
            else close(fd);
        }
    }
    return first;
}

static bool read_packet(eipc_link *link) {
    announcement body;
    struct iovec data = {&body, sizeof body};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(4 * sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(link->sock, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0) {
        if (errno == EINTR || errno == ECONNRESET) return true; /* what was queued before the reset comes after it */
        if (errno == EAGAIN) return false;
        n = 0;
    }
    int fd = n > 0 ? first_fd(&message) : -1;
    if (n == 0) {
        link->packets_ended = true;
        atomic_store(&link->gone, true);
        return false;
    }
    if (n == (ssize_t)sizeof body && body.type == slot_packet && fd >= 0) {
        take_slot(link, &body, fd);
        return true;
    }
    if (fd >= 0) close(fd);
    if (n == 1 && body.type == topics_packet) atomic_store(&link->topics, link->wanted_topics);
    else if (n != 1 || body.type != doorbell_packet) eipc_link_violation(link);
    return true;
}

/* More packets than a socket holds: a peer that rings without end must not keep us here. */
enum { PACKETS_PER_DRAIN = 1024 };

void eipc_link_drain(eipc_link *link) {
    pthread_mutex_lock(&link->packets);
    for (int i = 0; i < PACKETS_PER_DRAIN && !link->packets_ended && !atomic_load(&link->violated) && read_packet(link); i++) {
    }
    pthread_mutex_unlock(&link->packets);
}

/* ---- waiting for room ---------------------------------------------------------------------------------------------- */

static void set_space_epoch(eipc_link *link, uint32_t add) {
    uint32_t epoch = atomic_load_explicit(&link->me->space_epoch, memory_order_relaxed);
    atomic_store_explicit(&link->me->space_epoch, epoch + add, memory_order_seq_cst);
}

bool eipc_link_wait_for_room(eipc_link *link, int64_t deadline_ns, int *status) {
    /* The thread that reads this connection may take our doorbell off the socket, so no sleep is longer than this. */
    static const int64_t longest_sleep_ms = 10;
    *status = EIPC_OK;
    if (deadline_ns == 0) *status = EIPC_FULL;
    if (atomic_load(&link->gone)) *status = EIPC_GONE;
    if (atomic_load(&link->violated)) *status = EIPC_VIOLATION;
    if (atomic_load(&link->closed)) *status = EIPC_CLOSED;
    if (*status) return false;
    if (!link->waits_for_room) {
        link->count.waits_for_room++;
        link->waits_for_room = true;
        set_space_epoch(link, 1);
        return true; /* look once more: the reader may have moved before it could see the epoch */
    }
    int64_t left_ms = longest_sleep_ms;
    if (deadline_ns > 0) {
        int64_t left_ns = deadline_ns - eipc_now_ns();
        if (left_ns <= 0) {
            *status = EIPC_TIMEOUT;
            return false;
        }
        if (left_ns < left_ms * 1000000) left_ms = left_ns / 1000000 + 1;
    }
    struct pollfd fds[2] = {{link->sock, POLLIN, 0}, {link->pidfd, POLLIN, 0}};
    int n = poll(fds, link->pidfd >= 0 ? 2 : 1, (int)left_ms);
    if (n < 0 && errno == EINTR) {
        *status = EIPC_INTERRUPTED;
        return false;
    }
    if (n > 0 && fds[1].revents) atomic_store(&link->gone, true);
    if (n > 0 && fds[0].revents) {
        eipc_link_drain(link);
        eipc_waiter_nudge(link->waiter); /* the doorbell may have been meant for the thread that reads */
    }
    set_space_epoch(link, 2); /* a new odd epoch, which the reader will ring for again */
    return true;
}

void eipc_link_stop_waiting(eipc_link *link) {
    if (!link->waits_for_room) return;
    link->waits_for_room = false;
    set_space_epoch(link, 1);
}
