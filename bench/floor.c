/* The floor: the least that a fan-out over TCP can do. It subscribes to one channel of Redis and loops send().
 *
 *   floor LISTEN_PORT REDIS_PORT CHANNEL
 *
 * What one read from Redis brought goes out as lines, with one blocking send for each client. It does not echo,
 * knows no slow client, and ends when Redis does.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SEND_BUFFER (256 * 1024) /* pushd's default of --send-buffer */
#define READ_BYTES (64 * 1024)
#define MESSAGE_BYTES (1024 * 1024)

static char input[READ_BYTES + MESSAGE_BYTES], lines[READ_BYTES + MESSAGE_BYTES];
static size_t kept;
static int clients[20000], count;

static int open_socket(int port, int listening) {
    struct sockaddr_in address = {AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}, {0}};
    int on = 1, size = SEND_BUFFER, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (listening) {
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size); /* inherited by what is accepted */
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    if (listening ? bind(fd, (void *)&address, sizeof address) || listen(fd, 4096)
                  : connect(fd, (void *)&address, sizeof address)) {
        perror("floor");
        exit(1);
    }
    return fd;
}

/* Parse one bulk string at p; return what follows it, or NULL if not all of it is there. */
static char *bulk(char *p, char *end, char **data, size_t *size) {
    char *line = memchr(p, '\n', end - p);
    if (!line)
        return NULL;
    *size = strtoul(p + 1, NULL, 10);
    *data = line + 1;
    return *data + *size + 2 <= end ? *data + *size + 2 : NULL;
}

/* Turn the whole messages in input into lines; return their size. */
static size_t convert(void) {
    char *p = input, *end = input + kept, *data, *next;
    size_t out = 0, size;
    while (p < end && (next = memchr(p, '\n', end - p))) {
        char *kind = next + 1, *name;
        next = bulk(kind, end, &kind, &size);
        next = next ? bulk(next, end, &name, &size) : NULL;
        if (!next)
            break;
        if (kind[0] == 's')
            next = (next = memchr(next, '\n', end - next)) ? next + 1 : NULL; /* the answer to SUBSCRIBE */
        else if ((next = bulk(next, end, &data, &size))) {
            memcpy(lines + out, data, size + 2); /* the CR LF after a payload ends the line too */
            out += size + 2;
        }
        if (!next)
            break;
        p = next;
    }
    kept = end - p;
    memmove(input, p, kept);
    return out;
}

int main(int argc, char **argv) {
    if (argc != 4)
        return fputs("usage: floor LISTEN_PORT REDIS_PORT CHANNEL\n", stderr), 1;
    int redis = open_socket(atoi(argv[2]), 0), listener = open_socket(atoi(argv[1]), 1);
    dprintf(redis, "SUBSCRIBE %s\r\n", argv[3]);
    puts("ready");
    fflush(stdout);
    struct pollfd ready[2] = {{redis, POLLIN, 0}, {listener, POLLIN, 0}};
    while (poll(ready, 2, -1) > 0) {
        if (ready[1].revents) {
            int fd = accept(listener, NULL, NULL);
            if (fd >= 0 && count < (int)(sizeof clients / sizeof *clients)) {
                clients[count++] = fd;
                send(fd, "ready\r\n", 7, MSG_NOSIGNAL);
            }
        }
        if (ready[0].revents) {
            ssize_t got = read(redis, input + kept, READ_BYTES);
            if (got <= 0)
                return 0;
            kept += got;
            size_t size = convert();
            for (int i = 0; size && i < count; i++)
                send(clients[i], lines, size, MSG_NOSIGNAL);
        }
    }
}
