/* edgeml_ipc's shared-memory core: two processes, one socket, some sealed memfds. Plain C11 for Linux, no Python.
 *
 * SHM.md beside this file is the specification: the byte drawings, who writes what, the memory ordering and the crash story.
 * The Python half lies in edgeml_ipc/transports/ (shm.py above, _coremodule.c between).
 *
 *   segment.c  a memfd that one process writes and others map read-only
 *   ring.c     messages in a ring: reserve, copy in, commit; read, copy out, release
 *   slots.c    large messages: a memfd reused while warm, pinned by the reader
 *   topic.c    newest-wins values: one copy in, none out
 *   link.c     one connection: its socket (fd channel, doorbell, death notice) and its two endpoints
 *   wait.c     spin, then park, then epoll
 *
 * Functions return 0 or a negative eipc_status. Nothing here takes a lock in shared memory, and every value read from the
 * peer's pages is read once into a local and checked before it is used.
 */
#ifndef EDGEML_IPC_CORE_H
#define EDGEML_IPC_CORE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EIPC_VERSION 1
#define EIPC_MAGIC_ENDPOINT 0x31305450454c4d45ull /* "EMLEPT01" */
#define EIPC_MAGIC_BOARD 0x31304452424c4d45ull    /* "EMLBRD01" */
#define EIPC_MAX_PARTS 16384
#define EIPC_TOPICS 16      /* topics of one publisher */
#define EIPC_PINS 16        /* large messages that one reader may hold */
#define EIPC_TOPIC_PINS 4   /* values of one topic that one subscriber may hold; the last of them only for copying out */
#define EIPC_SLOTS 24       /* slots of one sender on one connection: EIPC_PINS held + some on their way */
#define EIPC_TOPIC_SLOTS 64 /* slots of one topic */
#define EIPC_CHALLENGE 16   /* bytes */

typedef enum {
    EIPC_OK = 0,
    EIPC_TIMEOUT = -1,     /* the deadline passed */
    EIPC_FULL = -2,        /* no room and the caller would not wait */
    EIPC_GONE = -3,        /* the peer is dead, and all it had committed was delivered */
    EIPC_TOO_LARGE = -4,   /* over the limit of this connection */
    EIPC_VIOLATION = -5,   /* the peer's pages or packets break the protocol */
    EIPC_INTERRUPTED = -6, /* a signal arrived */
    EIPC_CLOSED = -7,      /* this side closed */
    EIPC_SYSTEM = -8,      /* errno says what */
    EIPC_NO_MEMORY = -9,   /* the machine, the cgroup or the budget has no room for the segment */
    EIPC_FORKED = -10,     /* the object belongs to the process before fork() */
} eipc_status;

/* ---- what lies in shared memory ------------------------------------------------------------------------------------ */

/* One per side per connection, written by its owner only; the ring follows at the next page. */
typedef struct {
    uint64_t magic;
    uint16_t version;
    uint16_t pad0;
    uint32_t pad1;
    uint64_t header_bytes; /* where the ring begins */
    uint64_t capacity;     /* of the ring, a power of two */
    uint8_t challenge[EIPC_CHALLENGE];
    _Alignas(128) _Atomic uint64_t tx_tail;     /* how far I have committed in my ring */
    _Alignas(128) _Atomic uint64_t rx_head;     /* how far I have consumed the peer's ring */
    _Alignas(128) _Atomic uint32_t space_epoch; /* odd: my producer waits for room */
    _Alignas(128) _Atomic uint64_t pins[EIPC_PINS];                     /* slot + 1 that I read, 0 = none */
    _Alignas(128) _Atomic uint64_t topic_pins[EIPC_TOPICS][EIPC_TOPIC_PINS]; /* likewise, of the peer's topics */
} eipc_endpoint;

/* One per waiter, written by its owner only, mapped by all its peers. */
typedef struct {
    uint64_t magic;
    uint16_t version;
    uint16_t pad0;
    uint32_t pad1;
    _Alignas(128) _Atomic uint32_t park_epoch; /* odd: I sleep */
    _Atomic uint32_t cpu;                      /* where I last began to wait; a hint */
    _Alignas(128) _Atomic uint64_t latest[EIPC_TOPICS]; /* version << 24 | generation << 8 | slot + 1; 0 = nothing yet */
} eipc_board;

/* ---- segment.c ----------------------------------------------------------------------------------------------------- */

/* A mapped memfd. Counted, because leases outlive the connection that brought them. */
typedef struct {
    uint8_t *addr;
    size_t bytes;
    int fd;              /* -1 once it is not needed */
    uint32_t generation; /* of the slot */
    _Atomic int refs;
} eipc_map;

int eipc_map_create(size_t bytes, eipc_map **out);                 /* writable here, sealed against all other writers */
int eipc_map_attach(int fd, size_t least_bytes, uint32_t generation, eipc_map **out); /* read-only; checks size and seals; takes the fd over */
eipc_map *eipc_map_ref(eipc_map *map);
void eipc_map_unref(eipc_map *map);
int64_t eipc_memory_available(void); /* bytes that machine and cgroup can still give */
unsigned eipc_fork_count(void);      /* forks between the first process and this one */

/* ---- link.c -------------------------------------------------------------------------------------------------------- */

typedef struct eipc_waiter eipc_waiter;

typedef struct {
    const uint8_t *data;
    size_t bytes;
} eipc_part;

typedef struct {
    uint64_t messages_sent, messages_received, bytes_sent, bytes_received;
    uint64_t slots_created, slots_discarded, slot_bytes, copied_out, waits_for_room;
    _Atomic uint64_t doorbells; /* senders and readers ring */
} eipc_link_counters;

/* A slot of my own: free when the peer has consumed its descriptor and pins it no more. */
typedef struct {
    eipc_map *map;         /* NULL: this index is unused */
    uint64_t consumed_at;  /* the peer's rx_head from which on the descriptor is consumed */
    uint64_t last_use;     /* larger is warmer */
    uint32_t generation;
} eipc_slot;

typedef struct eipc_link {
    eipc_waiter *waiter; /* my board and my sleep; outlives the link */
    int sock;
    int pidfd;
    unsigned forks;
    eipc_map *mine, *theirs, *their_board;
    eipc_endpoint *me;
    const eipc_endpoint *peer;
    const eipc_board *peer_board;
    uint8_t *tx_ring;
    const uint8_t *rx_ring;
    uint64_t tx_capacity, rx_capacity;
    uint64_t tx_tail, tx_reserved, tx_head_seen; /* tx_head_seen: the peer's rx_head when I last looked */
    uint64_t rx_head;
    uint64_t tx_sequence, rx_sequence;
    _Atomic uint32_t rung_for_park, rung_for_space; /* the epochs that I have rung for */
    bool waits_for_room;
    uint64_t max_message_bytes, slot_budget_bytes;
    eipc_slot tx_slots[EIPC_SLOTS];
    uint64_t uses;
    pthread_mutex_t packets; /* guards the socket's reading end, its end, and the two tables of slots */
    bool packets_ended;      /* the socket told its end; a death told by the pidfd alone leaves packets to read */
    eipc_map *rx_slots[EIPC_SLOTS];
    eipc_map *rx_topic_slots[EIPC_TOPICS][EIPC_TOPIC_SLOTS];
    uint32_t wanted_topics;      /* bit set of those that I subscribed to */
    _Atomic uint32_t topics;     /* the same, once the publisher has announced their slots */
    uint64_t topic_seen[EIPC_TOPICS];
    uint32_t turn;
    _Atomic bool gone;   /* the socket or the pidfd said that the peer is dead */
    _Atomic bool closed; /* this side called close */
    _Atomic bool violated;
    _Atomic int refs; /* the owner, and every lease */
    void *owner;      /* for the layer above */
    eipc_link_counters count;
} eipc_link;

int eipc_link_create(eipc_waiter *waiter, int sock, uint64_t ring_bytes, uint64_t max_message_bytes,
                     uint64_t slot_budget_bytes, eipc_link **out); /* takes the socket over, also on failure */
int eipc_link_attach(eipc_link *link, eipc_map *endpoint, eipc_map *board); /* takes the maps over, also on failure */
void eipc_link_watch_process(eipc_link *link, int pidfd);                   /* takes the pidfd over */
void eipc_link_subscribe(eipc_link *link, uint32_t topics); /* takes effect when the publisher says so */
int eipc_link_open_topics(eipc_link *link);                 /* the publisher says so, after eipc_topic_add */
void eipc_link_close(eipc_link *link); /* idempotent, any thread; memory goes with the last unref */
void eipc_link_shed(eipc_link *link); /* its owner is gone: give back all that leases do not need */
void eipc_link_ref(eipc_link *link);
void eipc_link_unref(eipc_link *link);

void eipc_link_drain(eipc_link *link); /* read packets: doorbells, slots, the end */
int eipc_link_announce(eipc_link *link, int topic, uint32_t slot, const eipc_map *map); /* topic -1: the link's own slots */
void eipc_link_ring_if_parked(eipc_link *link);
void eipc_link_ring_for_room(eipc_link *link);
bool eipc_link_wait_for_room(eipc_link *link, int64_t deadline_ns, int *status); /* true: look again */
void eipc_link_stop_waiting(eipc_link *link);
int eipc_link_violation(eipc_link *link);

/* ---- ring.c, slots.c ------------------------------------------------------------------------------------------------ */

/* Send `count` parts as one message. deadline_ns: CLOCK_MONOTONIC; 0 = do not wait, -1 = no end. */
int eipc_send(eipc_link *link, const eipc_part *parts, uint32_t count, int64_t deadline_ns);

/* A received message, still in the peer's memory. */
typedef struct {
    const uint8_t *body; /* the parts' bytes; part i begins at the sum of the rounded lengths before it */
    const uint8_t *lengths; /* of u32 (ring) or u64 (slot), still the peer's: read each once */
    uint64_t room;       /* bytes at body */
    uint32_t count;
    uint32_t align;      /* of each part: 8 in a ring, 64 in a slot */
    uint64_t next_head;  /* rx_head after this message; ring messages only */
    eipc_map *map;       /* slot messages: counted for the caller; else NULL */
    _Atomic uint64_t *pin;
    bool must_copy;      /* no pin was left for a lease: copy out and release at once */
    bool consumed;       /* rx_head has been advanced */
} eipc_message;

bool eipc_readable(eipc_link *link);
int eipc_begin_read(eipc_link *link, eipc_message *out); /* EIPC_FULL: nothing there */
int eipc_read_length(const eipc_message *message, uint32_t i, uint64_t *offset, uint64_t *bytes);
void eipc_end_read(eipc_link *link, eipc_message *message); /* parts were copied, or a lease holds map and pin */
void eipc_release_pin(eipc_link *link, eipc_map *map, _Atomic uint64_t *pin); /* any thread; drops the map's reference */

size_t eipc_slot_bytes(const eipc_part *parts, uint32_t count);
void eipc_slot_write(uint8_t *slot, const eipc_part *parts, uint32_t count);
int eipc_slot_open(eipc_map *map, eipc_message *out); /* fills body, lengths, room, count, align, map */
void eipc_slot_discard(eipc_slot *slot);
int eipc_slot_renew(eipc_slot *slot, size_t need); /* a new memfd of at least that size, one generation later */
int eipc_topic_begin_read(eipc_link *link, eipc_message *out); /* EIPC_FULL: nothing new */
int eipc_slot_send(eipc_link *link, const eipc_part *parts, uint32_t count, int64_t deadline_ns);
int eipc_ring_send_descriptor(eipc_link *link, uint32_t slot, uint32_t generation, int64_t deadline_ns);
size_t eipc_slot_size_for(size_t need);
int eipc_slot_choose(eipc_slot *slots, int count, size_t need, uint64_t in_use, uint64_t budget_bytes, bool *renew, uint64_t *discarded);

/* ---- topic.c ------------------------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t publishes, refused, slots_created, slots_discarded;
} eipc_topic_counters;

/* The publisher's side of one topic. The caller serialises all calls on one topic. */
typedef struct {
    eipc_waiter *waiter;
    int index;
    uint64_t budget_bytes, version;
    int current; /* slot of the newest value, -1 = none */
    eipc_slot slots[EIPC_TOPIC_SLOTS];
    eipc_link **subscribers;
    size_t subscriber_count, subscriber_room;
    _Atomic uint64_t local_pins[EIPC_TOPIC_PINS]; /* values that the publisher itself lends out */
    eipc_topic_counters count;
} eipc_topic;

int eipc_topic_create(eipc_waiter *waiter, int index, uint64_t budget_bytes, eipc_topic **out);
void eipc_topic_destroy(eipc_topic *topic);
int eipc_topic_add(eipc_topic *topic, eipc_link *link);
void eipc_topic_remove(eipc_topic *topic, eipc_link *link);
int eipc_topic_publish(eipc_topic *topic, const eipc_part *parts, uint32_t count);
int eipc_topic_hold(eipc_topic *topic, eipc_message *out); /* pin the newest value for the publisher; EIPC_FULL: no pin left */

/* ---- wait.c -------------------------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t spins_won, spins_lost, sleeps;
} eipc_waiter_counters;

struct eipc_waiter {
    eipc_map *board_map;
    eipc_board *board;
    int epoll_fd, wake_fd;
    unsigned forks;
    eipc_link **links;
    size_t link_count, link_room, next;
    int64_t spin_budget_ns;
    uint32_t spins_lost_in_row, short_sleeps, waits_since_sleep;
    bool attention; /* a watched fd or a wake was seen and not yet reported */
    _Atomic int refs; /* the owner, and every link */
    eipc_waiter_counters count;
};

int eipc_waiter_create(eipc_waiter **out);
void eipc_waiter_ref(eipc_waiter *waiter);
void eipc_waiter_unref(eipc_waiter *waiter);
int eipc_waiter_add(eipc_waiter *waiter, eipc_link *link);
void eipc_waiter_remove(eipc_waiter *waiter, eipc_link *link);
int eipc_waiter_watch(eipc_waiter *waiter, int fd);
void eipc_waiter_unwatch(eipc_waiter *waiter, int fd);
void eipc_waiter_wake(eipc_waiter *waiter);  /* the wait returns */
void eipc_waiter_nudge(eipc_waiter *waiter); /* if it sleeps, it looks again */
eipc_link *eipc_waiter_scan(eipc_waiter *waiter);
/* Wait until a link is readable (*ready), or a watched fd is or a wake came (*ready = NULL, returns 0). */
int eipc_waiter_wait(eipc_waiter *waiter, int64_t deadline_ns, eipc_link **ready);
eipc_link *eipc_waiter_try(eipc_waiter *waiter); /* a readable link at once, without a system call, or NULL */
int64_t eipc_now_ns(void);

#endif
