/* The protocol between prefill_worker and decode_worker, kept as small as possible. Messages with a length are sent over
 * a Unix or TCP socket, in the machine's byte order, neither encrypted nor signed. A server would use its own RPC, which
 * only has to carry bytes: a cache's address, prompts and tickets.
 */
#ifndef RPC_H
#define RPC_H

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    RPC_ADDRESS = 1, /* sent to the decode worker as the first message: cleave_cache_address */
    RPC_PROMPT,      /* sent to the prefill worker: struct rpc_prompt and its tokens */
    RPC_TICKET,      /* sent to the decode worker: cleave_kv_ticket */
    RPC_FAILED       /* sent to the decode worker: int32_t status, then a text */
};

#define RPC_MOST (64u << 20)

struct rpc_header {
    uint32_t kind, len; /* length of the body */
    uint64_t id;        /* number that the decode worker gave the request */
};

struct rpc_prompt {
    uint32_t n_tokens, max_new_tokens;
    uint64_t seed;
    float temperature;
    uint32_t reserved;
};

struct rpc_buffer {
    unsigned char *data;
    size_t begin, end, cap;
};

/* A connection. No function blocks: data that cannot be sent yet is kept. */
struct rpc {
    int fd;
    struct rpc_buffer in, out;
};

static inline void rpc_close(struct rpc *rpc)
{
    if (rpc->fd >= 0)
        close(rpc->fd);
    free(rpc->in.data);
    free(rpc->out.data);
    memset(rpc, 0, sizeof *rpc);
    rpc->fd = -1;
}

/* Makes room for `n` more bytes at the end. */
static inline void rpc_room(struct rpc_buffer *b, size_t n)
{
    if (b->begin > 0)
        memmove(b->data, b->data + b->begin, b->end - b->begin);
    b->end -= b->begin;
    b->begin = 0;
    if (b->cap - b->end >= n)
        return;
    b->cap = 2 * b->cap > b->end + n ? 2 * b->cap : b->end + n;
    b->data = realloc(b->data, b->cap);
    if (b->data == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
}

/* Sends buffered data until the socket is full. Returns -1 if the other side is gone. */
static inline int rpc_flush(struct rpc *rpc)
{
    while (rpc->out.begin < rpc->out.end) {
        /* MSG_NOSIGNAL: a dead peer is an error, not a SIGPIPE. */
        ssize_t n = send(rpc->fd, rpc->out.data + rpc->out.begin, rpc->out.end - rpc->out.begin, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -1;
        rpc->out.begin += (size_t)n;
    }
    return 0;
}

/* Sends a message whose body has two parts. Returns -1 if the other side is gone. */
static inline int rpc_send(struct rpc *rpc, uint32_t kind, uint64_t id, const void *a, size_t n_a, const void *b, size_t n_b)
{
    struct rpc_header header = {kind, (uint32_t)(n_a + n_b), id};
    rpc_room(&rpc->out, sizeof header + n_a + n_b);
    memcpy(rpc->out.data + rpc->out.end, &header, sizeof header);
    memcpy(rpc->out.data + rpc->out.end + sizeof header, a, n_a);
    if (n_b > 0)
        memcpy(rpc->out.data + rpc->out.end + sizeof header + n_a, b, n_b);
    rpc->out.end += sizeof header + n_a + n_b;
    return rpc_flush(rpc);
}

/* Reads the data that has arrived. Returns -1 if the other side is gone. */
static inline int rpc_receive(struct rpc *rpc)
{
    for (;;) {
        rpc_room(&rpc->in, 65536);
        ssize_t n = recv(rpc->fd, rpc->in.data + rpc->in.end, rpc->in.cap - rpc->in.end, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? 0 : -1;
        rpc->in.end += (size_t)n;
    }
}

/* Takes the next whole message from the received data. Returns 1 and its body, which stays valid until the next
 * rpc_receive; 0 if no message is complete; -1 if the data does not follow this protocol. */
static inline int rpc_next(struct rpc *rpc, struct rpc_header *header, const unsigned char **body)
{
    size_t n = rpc->in.end - rpc->in.begin;
    if (n < sizeof *header)
        return 0;
    memcpy(header, rpc->in.data + rpc->in.begin, sizeof *header);
    if (header->len > RPC_MOST)
        return -1;
    if (n - sizeof *header < header->len)
        return 0;
    *body = rpc->in.data + rpc->in.begin + sizeof *header;
    rpc->in.begin += sizeof *header + header->len;
    return 1;
}

static inline int rpc_open_unix(const char *path, int listening)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0), failed, attempt;
    if (strlen(path) >= sizeof name.sun_path) {
        errno = ENAMETOOLONG;
        failed = 1;
    } else if (strcpy(name.sun_path, path), !listening) {
        failed = connect(fd, (struct sockaddr *)&name, sizeof name) != 0;
    } else {
        mode_t mask = umask(077); /* only this user may connect */
        for (attempt = 0, failed = 1; failed && attempt < 2; attempt++) {
            failed = bind(fd, (struct sockaddr *)&name, sizeof name) != 0;
            if (failed && errno != EADDRINUSE)
                break;
            /* Removes the socket of a killed process. A socket that answers belongs to a running process. */
            if (failed && attempt == 0) {
                int other = socket(AF_UNIX, SOCK_STREAM, 0);
                int gone = connect(other, (struct sockaddr *)&name, sizeof name) != 0 && errno == ECONNREFUSED;
                close(other);
                errno = EADDRINUSE;
                if (!gone || unlink(path) != 0)
                    break;
            }
        }
        umask(mask);
        failed = failed || listen(fd, 64) != 0;
    }
    if (!failed)
        return fd;
    failed = errno;
    close(fd);
    errno = failed;
    return -1;
}

static inline int rpc_open_tcp(const char *where, int listening, const char **why)
{
    char host[256];
    const char *colon = strrchr(where, ':');
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = listening ? AI_PASSIVE : 0}, *found;
    int fd, one = 1, failed;
    size_t n = colon == NULL ? 0 : (size_t)(colon - where);
    if (n == 0 || n >= sizeof host) {
        *why = "neither a path (with a /) nor host:port";
        return -1;
    }
    memcpy(host, where, n);
    host[n] = 0;
    if (host[0] == '[' && host[n - 1] == ']') {
        memmove(host, host + 1, n - 2);
        host[n - 2] = 0;
    }
    failed = getaddrinfo(host, colon + 1, &hints, &found);
    if (failed) {
        *why = gai_strerror(failed);
        return -1;
    }
    fd = socket(found->ai_family, SOCK_STREAM, 0);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (!listening)
        fcntl(fd, F_SETFL, O_NONBLOCK); /* if nobody listens, the first read fails */
    if (listening)
        failed = bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 64) != 0;
    else
        failed = connect(fd, found->ai_addr, found->ai_addrlen) != 0 && errno != EINPROGRESS;
    failed = failed ? errno : 0;
    freeaddrinfo(found);
    if (!failed)
        return fd;
    close(fd);
    errno = failed;
    return -1;
}

/* Returns a socket that listens at `where`, or is connected to it: a path, which contains a /, or host:port. Returns -1
 * and sets `*why` on failure. */
static inline int rpc_open(const char *where, int listening, const char **why)
{
    int fd;
    *why = NULL;
    fd = strchr(where, '/') != NULL ? rpc_open_unix(where, listening) : rpc_open_tcp(where, listening, why);
    if (fd < 0 && *why == NULL)
        *why = strerror(errno);
    return fd;
}

#endif
