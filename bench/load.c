/* The load generator: holds many client connections, and checks and times every message that each receives.
 *
 *   load receive --messages M [--stalled K] ...   each client must get messages 0 to M-1, whole and in order
 *                [--own HEX]                      each of a channel of its own: see own() below
 *   load storm ...                                all connect at once; on a line of input all are cut and return
 *   load echo --request HEX --reply HEX --pipeline D --seconds S ...    round trips
 *
 * It prints "ready" when all clients are connected and greeted, and one line of JSON at the end. The end of its
 * input ends it early. A payload begins with its number (6 hex digits) and the time when it was published (10
 * hex digits, microseconds of CLOCK_MONOTONIC); the rest is filler. On the wire it stands between the bytes
 * --before and --after, so that all frames of one run have one size, and differ in 16 places only.
 *
 * With --lead frames are lines: something that is not looked at may stand between --before and --lead, which the
 * payload follows. What is between frames begins with --noise: it equals that, or it is a line that goes on after it
 * with another byte than a message does.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define STAMP 16             /* digits at the beginning of a payload */
#define TIME 0xffffffffff    /* microseconds are compared in 40 bits, as stamps have them */
#define READ_BYTES (1 << 18) /* what one recv takes at most */
#define CONNECTING 128       /* clients that connect at the same time, but in a storm */
#define SLACK 1024           /* what frames may be longer than the shortest one, greetings too */
#define SPLIT 32             /* parts of each power of two in the histogram: 3 % apart */
#define INPUT UINT32_MAX     /* epoll's word for our own input */

/* How long to look away between two looks at the sockets, in nanoseconds, where deliveries are received. Over
 * loopback a sender pays for waking the process that waits for its data, most where it is slow enough that the
 * other falls asleep each time. Clients on other machines do not cost that, so the generator sleeps by the clock. */
#define LOOK_AWAY 200000

struct bytes {
    char *data;
    size_t size;
};

struct client {
    int fd;
    bool greeted, reading, done;
    uint32_t next;   /* the number that should come now */
    uint32_t count;  /* messages received */
    uint32_t kept;   /* bytes of a frame whose rest has not come yet */
    char *rest;
    struct bytes hello, before; /* as options has them, but for its own channel */
    uint64_t asked;  /* when the requests were sent */
    uint32_t waiting; /* bytes of replies that have not come yet */
};

static struct {
    const char *mode;
    int port, clients, stalled, messages, pipeline;
    double seconds;
    struct bytes hello, ready, before, lead, after, noise, filler, request, reply, own;
} options;

static struct client *clients;
static int epoll;
static struct sockaddr_in address;
static char buffer[READ_BYTES + (1 << 16)];
static size_t frame; /* bytes, at least */
static int greeted, finished, closed;
static uint64_t received, disordered, damaged, reads, failures;
static uint64_t first, last, slowest;
static uint64_t histogram[64 * SPLIT];
static struct rusage connected; /* what had been used when all were connected and greeted */

static void fail(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return ((uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000) & TIME;
}

/* Read 8 hex digits at once: each byte becomes its nibble, then pairs are joined, then pairs of pairs. */
static uint32_t hex8(const char *text) {
    uint64_t x;
    memcpy(&x, text, 8);
    x = (x & 0x0f0f0f0f0f0f0f0f) + 9 * ((x >> 6) & 0x0101010101010101);
    x = __builtin_bswap64(x);
    x = (x | x >> 4) & 0x00ff00ff00ff00ff;
    x = (x | x >> 8) & 0x0000ffff0000ffff;
    return (uint32_t)(x | x >> 16);
}

static void record(uint64_t micros) {
    unsigned top = micros < SPLIT ? 0 : 63 - __builtin_clzll(micros) - __builtin_ctz(SPLIT);
    histogram[top * SPLIT + (micros >> top)]++;
    if (micros > slowest)
        slowest = micros;
}

static double quantile(double share) {
    uint64_t total = 0, seen = 0;
    for (size_t i = 0; i < 64 * SPLIT; i++)
        total += histogram[i];
    for (size_t i = 0; i < 64 * SPLIT; i++) {
        seen += histogram[i];
        if (seen && seen >= share * total) {
            /* The inverse of record: from SPLIT on, a row holds the upper half of its numbers only. */
            size_t top = i < 2 * SPLIT ? 0 : i / SPLIT - 1;
            return (double)((i - top * SPLIT) << top);
        }
    }
    return 0;
}

static bool begins(const char *at, size_t size, struct bytes with) {
    return size >= with.size && !memcmp(at, with.data, with.size);
}

/* Return the size of the frame that begins here; 0 while its end has not come. */
static size_t frame_at(const char *at, size_t size) {
    if (!options.lead.size)
        return size >= frame ? frame : 0;
    const char *end = memchr(at, '\n', size);
    if (end)
        return end + 1 - at;
    return size < frame + SLACK ? 0 : size; /* it cannot be one any more */
}

/* Return the size of what stands here between frames; 0 if it is none of that, or its end has not come. */
static size_t noise_at(const char *at, size_t size) {
    size_t noise = options.noise.size;
    if (!noise || !begins(at, size, options.noise))
        return 0;
    if (!options.lead.size)
        return noise;
    bool is_message = size == noise || at[noise] == options.before.data[noise];
    return is_message ? 0 : frame_at(at, size);
}

/* Take in one whole frame. */
static void take(struct client *c, const char *at, size_t size, uint64_t when) {
    if (size < frame) {
        damaged++;
        return;
    }
    const char *stamp = at + size - options.filler.size - STAMP;
    uint64_t high = hex8(stamp), low = hex8(stamp + 8);
    uint32_t number = high >> 8;
    uint64_t sent = (high & 0xff) << 32 | low;
    if (!begins(at, size, c->before) || memcmp(stamp - options.lead.size, options.lead.data, options.lead.size) ||
        memcmp(stamp + STAMP, options.filler.data, options.filler.size)) {
        damaged++;
        return;
    }
    if (number < c->next) {
        disordered++;
        return;
    }
    c->next = number + 1;
    c->count++;
    received++;
    record((when - sent) & TIME);
}

static void finish(struct client *c) {
    if (!c->done) {
        c->done = true;
        finished++;
    }
}

static void gone(struct client *c) {
    closed++;
    finish(c);
    close(c->fd);
    c->fd = -1;
}

static void receive(struct client *c) {
    memcpy(buffer, c->rest, c->kept);
    ssize_t got = recv(c->fd, buffer + c->kept, READ_BYTES, 0);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN)
            gone(c);
        return;
    }
    reads++;
    uint64_t when = now();
    size_t size = c->kept + got, at = 0, part;
    for (;;) {
        if ((part = noise_at(buffer + at, size - at)))
            at += part;
        else if ((part = frame_at(buffer + at, size - at))) {
            take(c, buffer + at, part, when);
            at += part;
        } else
            break;
    }
    c->kept = size - at;
    memcpy(c->rest, buffer + at, c->kept);
    last = when;
    if (c->next >= (uint32_t)options.messages)
        finish(c);
}

static void refused(struct client *c);

/* In a storm it counts that a message came, whatever else came before it. */
static void notice(struct client *c) {
    ssize_t got = recv(c->fd, buffer, READ_BYTES, 0);
    if (got <= 0) {
        if ((got == 0 || errno != EAGAIN) && !c->done)
            refused(c); /* cut off before it had anything */
        else if (got == 0 || errno != EAGAIN)
            gone(c);
        return;
    }
    if (memmem(buffer, got, options.filler.data, options.filler.size)) {
        received++;
        last = now();
        finish(c);
    }
}

static void ask(struct client *c) {
    size_t size = options.request.size * options.pipeline;
    c->waiting = options.reply.size * options.pipeline;
    c->asked = now();
    if (send(c->fd, buffer, size, MSG_NOSIGNAL) != (ssize_t)size)
        fail("send");
}

static void answered(struct client *c) {
    static char reply[READ_BYTES];
    ssize_t got = recv(c->fd, reply, sizeof reply, 0);
    if (got <= 0)
        fail("recv");
    for (ssize_t i = 0, place = options.reply.size * options.pipeline - c->waiting; i < got; i++, place++)
        if (reply[i] != options.reply.data[place % options.reply.size])
            damaged++;
    if ((size_t)got > c->waiting)
        fail("more came than was asked for");
    c->waiting -= got;
    if (c->waiting == 0) {
        last = now();
        record((last - c->asked) & TIME);
        received += options.pipeline;
        if (((last - first) & TIME) < options.seconds * 1e6)
            ask(c);
        else
            finish(c);
    }
}

static void watch(struct client *c, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.u32 = c - clients};
    if (epoll_ctl(epoll, operation, c->fd, &event))
        fail("epoll_ctl");
}

static void join(struct client *c) {
    int on = 1, small = 4096;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        fail("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (!c->reading)
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    c->greeted = c->done = false;
    c->kept = 0;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        fail("connect");
    watch(c, EPOLLOUT, EPOLL_CTL_ADD);
}

/* Connect again what could not be connected, or was cut off: a storm overruns servers. */
static void refused(struct client *c) {
    if (strcmp(options.mode, "storm")) {
        fputs("load: a connection was refused\n", stderr);
        exit(1);
    }
    failures++;
    close(c->fd);
    join(c);
}

static void greet(struct client *c) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        refused(c);
        return;
    }
    if (c->hello.size && send(c->fd, c->hello.data, c->hello.size, MSG_NOSIGNAL) < 0)
        fail("send");
    watch(c, EPOLLIN, EPOLL_CTL_MOD);
}

static void await_greeting(struct client *c) {
    ssize_t got = recv(c->fd, c->rest + c->kept, frame + SLACK - c->kept, 0);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN)
            refused(c);
        return;
    }
    c->kept += got;
    if (memmem(c->rest, c->kept, options.ready.data, options.ready.size)) {
        c->greeted = true;
        c->kept = 0;
        greeted++;
        if (!c->reading) {
            watch(c, 0, EPOLL_CTL_MOD);
            finish(c);
        }
    } else if (c->kept == frame + SLACK)
        fail("no greeting");
}

static void serve(struct epoll_event *event, void (*handle)(struct client *)) {
    struct client *c = &clients[event->data.u32];
    if (c->fd < 0)
        return;
    if (event->events & EPOLLOUT)
        greet(c);
    else if (c->greeted && !c->reading)
        gone(c); /* cut off; what lies in its buffer stays unread */
    else if (handle == notice || c->greeted)
        handle(c);
    else if (event->events & (EPOLLHUP | EPOLLERR))
        refused(c);
    else
        await_greeting(c);
}

/* Serve the clients until a condition holds, or the input has a line or ends: then return false. */
static bool run(bool (*until)(void), void (*handle)(struct client *)) {
    struct epoll_event events[1024];
    struct timespec look_away = {0, LOOK_AWAY};
    while (!until()) {
        if (handle == receive)
            nanosleep(&look_away, NULL);
        int count = epoll_wait(epoll, events, 1024, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.u32 == INPUT) {
                char line[64];
                return read(0, line, sizeof line) > 0 && until();
            }
            serve(&events[i], handle);
        }
    }
    return true;
}

static int joined;

static bool all_greeted(void) {
    while (joined < options.clients && joined - greeted < CONNECTING)
        join(&clients[joined++]);
    return greeted == options.clients;
}

static bool all_finished(void) {
    return finished == options.clients;
}

static void say(const char *line) {
    puts(line);
    fflush(stdout);
}

static double cpu_seconds(const struct rusage *used) {
    const struct timeval *user = &used->ru_utime, *system = &used->ru_stime;
    return user->tv_sec + system->tv_sec + (user->tv_usec + system->tv_usec) / 1e6;
}

static void report(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    uint64_t expected = (uint64_t)options.messages * (options.clients - options.stalled);
    double cpu = cpu_seconds(&used) - cpu_seconds(&connected);
    printf("{\"received\": %lu, \"missing\": %lu, \"disordered\": %lu, \"damaged\": %lu, \"closed\": %d, ",
           received, expected > received ? expected - received : 0, disordered, damaged, closed);
    printf("\"first_us\": %lu, \"last_us\": %lu, \"p50_us\": %.0f, \"p99_us\": %.0f, \"max_us\": %lu, ", first,
           last, quantile(0.50), quantile(0.99), slowest);
    printf("\"reads\": %lu, \"sleeps\": %ld, \"cpu\": %.6f}\n", reads, used.ru_nvcsw - connected.ru_nvcsw, cpu);
    fflush(stdout);
}

static void storm(void) {
    for (int round = 0; round < 2; round++) {
        uint64_t start = now();
        finished = 0;
        for (int i = 0; i < options.clients; i++)
            join(&clients[i]);
        if (!run(all_finished, notice))
            return;
        printf("{\"round\": %d, \"all_us\": %lu, \"refused\": %lu}\n", round, (last - start) & TIME, failures);
        fflush(stdout);
        char line[64];
        if (round == 0 && read(0, line, sizeof line) <= 0)
            return;
        struct linger cut = {1, 0};
        for (int i = 0; i < options.clients; i++) {
            setsockopt(clients[i].fd, SOL_SOCKET, SO_LINGER, &cut, sizeof cut);
            close(clients[i].fd);
        }
    }
}

static struct bytes unhex(const char *text) {
    struct bytes b = {malloc(strlen(text) / 2 + 1), strlen(text) / 2};
    for (size_t i = 0; i < b.size; i++)
        sscanf(text + 2 * i, "%2hhx", (unsigned char *)&b.data[i]);
    return b;
}

/* Return bytes for one client: where they name the channel --own, its last 4 letters become the client's number. */
static struct bytes own(struct bytes shared, int number) {
    const char *name = options.own.size ? memmem(shared.data, shared.size, options.own.data, options.own.size) : NULL;
    if (!name)
        return shared;
    char digits[16];
    snprintf(digits, sizeof digits, "%04d", number % 10000);
    struct bytes copy = {malloc(shared.size), shared.size};
    memcpy(copy.data, shared.data, shared.size);
    memcpy(copy.data + (name - shared.data) + options.own.size - 4, digits, 4);
    return copy;
}

static void parse(int count, char **words) {
    if (count < 2 || count % 2)
        fail("usage: load MODE --option value ...");
    options.mode = words[1];
    options.pipeline = 1;
    for (int i = 2; i < count; i += 2) {
        const char *name = words[i], *value = words[i + 1];
        struct { const char *name; int *number; struct bytes *bytes; } table[] = {
            {"--port", &options.port, 0}, {"--clients", &options.clients, 0},
            {"--stalled", &options.stalled, 0}, {"--messages", &options.messages, 0},
            {"--pipeline", &options.pipeline, 0}, {"--hello", 0, &options.hello},
            {"--ready", 0, &options.ready}, {"--before", 0, &options.before},
            {"--after", 0, &options.after}, {"--noise", 0, &options.noise},
            {"--filler", 0, &options.filler}, {"--request", 0, &options.request},
            {"--reply", 0, &options.reply}, {"--lead", 0, &options.lead}, {"--own", 0, &options.own},
        };
        bool known = !strcmp(name, "--seconds");
        if (known)
            options.seconds = atof(value);
        for (size_t j = 0; j < sizeof table / sizeof *table; j++)
            if (!strcmp(name, table[j].name)) {
                known = true;
                if (table[j].number)
                    *table[j].number = atoi(value);
                else
                    *table[j].bytes = unhex(value);
            }
        if (!known)
            fail(name);
    }
}

int main(int count, char **words) {
    parse(count, words);
    struct bytes *filler = &options.filler, *after = &options.after;
    filler->data = realloc(filler->data, filler->size + after->size + 1);
    memcpy(filler->data + filler->size, after->data, after->size);
    filler->size += after->size; /* they are compared together */
    frame = options.before.size + options.lead.size + STAMP + filler->size;
    if (frame + SLACK > sizeof buffer - READ_BYTES || options.request.size * options.pipeline > sizeof buffer) {
        fputs("load: messages, or requests, are too large\n", stderr);
        return 1;
    }
    address = (struct sockaddr_in){AF_INET, htons(options.port), {htonl(INADDR_LOOPBACK)}, {0}};
    epoll = epoll_create1(EPOLL_CLOEXEC);
    clients = calloc(options.clients, sizeof *clients);
    for (int i = 0; i < options.clients; i++) {
        clients[i].rest = malloc(frame + SLACK);
        clients[i].reading = i >= options.stalled;
        clients[i].hello = own(options.hello, i);
        clients[i].before = own(options.before, i);
    }
    struct epoll_event input = {.events = EPOLLIN, .data.u32 = INPUT};
    epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &input);
    if (!strcmp(options.mode, "storm")) {
        storm();
        return 0;
    }
    if (!run(all_greeted, receive))
        return 1;
    getrusage(RUSAGE_SELF, &connected);
    say("ready");
    if (!strcmp(options.mode, "echo")) {
        for (int i = 0; i < options.pipeline; i++)
            memcpy(buffer + i * options.request.size, options.request.data, options.request.size);
        first = now();
        for (int i = 0; i < options.clients; i++)
            ask(&clients[i]);
        run(all_finished, answered);
    } else
        run(all_finished, receive);
    report();
    return 0;
}
