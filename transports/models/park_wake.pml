/* Park and wake, as wait.c and link.c do it: one sleeper with one epoch for several senders, doorbells on sockets.
 *
 * Each process's stores go through a store buffer of one entry, which drains at any time: that is what a seq_cst store
 * followed by a load forbids, and a plain one allows. -DNOFENCE_SLEEPER or -DNOFENCE_SENDER takes the ordering out;
 * -DRING_ONCE_EVER lets a sender ring for one epoch only. In each case Spin must find the sleeper asleep for ever.
 */
#define SENDERS 2
#define MESSAGES 2

byte tail[SENDERS], epoch;
bool bell[SENDERS]; /* the sender's socket is readable */
bool sender_buffered[SENDERS], sleeper_buffered;
byte sender_buffer[SENDERS], sleeper_buffer;

#ifdef NOFENCE_SLEEPER
#define SLEEPER_FENCE skip
#else
#define SLEEPER_FENCE !sleeper_buffered
#endif
#ifdef NOFENCE_SENDER
#define SENDER_FENCE skip
#else
#define SENDER_FENCE !sender_buffered[id]
#endif
#define STORE_EPOCH(value) !sleeper_buffered; d_step { sleeper_buffer = value; sleeper_buffered = true }

active proctype drain_sleeper() { end: do :: atomic { sleeper_buffered -> epoch = sleeper_buffer; sleeper_buffered = false } od }
proctype drain_sender(byte id) { end: do :: atomic { sender_buffered[id] -> tail[id] = sender_buffer[id]; sender_buffered[id] = false } od }

proctype sender(byte id) {
    byte sent = 0, seen, rung = 0;
    do
    :: sent < MESSAGES ->
        !sender_buffered[id];
        sent++;
        d_step { sender_buffer[id] = sent; sender_buffered[id] = true }
        SENDER_FENCE;
        seen = epoch;
        if
#ifdef RING_ONCE_EVER
        :: (seen & 1) && rung == 0 -> rung = seen; bell[id] = true
#else
        :: (seen & 1) && seen != rung -> rung = seen; bell[id] = true
#endif
        :: else -> skip
        fi
    :: else -> break
    od
}

#define READABLE (tail[0] != head[0] || tail[1] != head[1])

active proctype sleeper() {
    byte head[SENDERS], mine = 0;
    do
    :: head[0] == MESSAGES && head[1] == MESSAGES -> break
    :: else ->
        if
        :: READABLE -> skip
        :: else ->
            mine++;
            STORE_EPOCH(mine);
            SLEEPER_FENCE;
            if
            :: READABLE -> skip
            :: else -> atomic { (bell[0] || bell[1]) -> bell[0] = false; bell[1] = false }
            fi;
            mine++;
            STORE_EPOCH(mine)
        fi;
        head[0] = tail[0];
        head[1] = tail[1]
    od
}

init { atomic { run drain_sender(0); run drain_sender(1); run sender(0); run sender(1) } }
