/* Shared by prefill_worker and decode_worker: errors, the place where they meet, and their secret. */
#ifndef WORKER_H
#define WORKER_H

#include <cleave/cleave.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char *program;
static cleave_error_t err;

static inline void check(cleave_status_t status, const char *doing)
{
    if (status == CLEAVE_OK)
        return;
    fprintf(stderr, "%s: %s: %s (%s)\n", program, doing, err.message[0] ? err.message : "failed", cleave_status_string(status));
    exit(1);
}

static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A file that both workers of a user find without options. */
static inline const char *meeting_place(const char *suffix, char *path, size_t cap)
{
    const char *directory = getenv("XDG_RUNTIME_DIR");
    snprintf(path, cap, "%s/cleave-handoff-%u.%s", directory && *directory ? directory : "/tmp", (unsigned)geteuid(), suffix);
    return path;
}

static inline void secret_fails(const char *path, const char *why, const char *hint)
{
    fprintf(stderr, "%s: secret file %s: %s%s\n", program, path, why, hint);
    exit(1);
}

/* Creates a secret that only this user can read. Only one side does this, because each might end up with its own
 * otherwise. */
static inline void create_secret(const char *path)
{
    unsigned char secret[32];
    FILE *random = fopen("/dev/urandom", "rb");
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
    if (fd < 0 && errno == EEXIST) {
        if (random != NULL)
            fclose(random);
        return;
    }
    if (fd < 0)
        secret_fails(path, strerror(errno), "");
    if (random == NULL || fread(secret, 1, sizeof secret, random) != sizeof secret)
        secret_fails("/dev/urandom", "no random bytes", "");
    if (write(fd, secret, sizeof secret) != (ssize_t)sizeof secret || close(fd) != 0) {
        unlink(path);
        secret_fails(path, "cannot be written", "");
    }
    fclose(random);
}

/* Reads the 32 bytes that make two caches trust each other. Anyone who has them can read every prompt. */
static inline void read_secret(const char *path, uint8_t secret[32])
{
    unsigned char extra;
    struct stat info;
    int fd = open(path, O_RDONLY | O_NOFOLLOW);
    if (fd < 0)
        secret_fails(path, strerror(errno), errno == ENOENT ? ": start prefill_worker first, which makes one, or copy its file" : "");
    if (fstat(fd, &info) != 0 || info.st_uid != geteuid() || (info.st_mode & 077) != 0)
        secret_fails(path, "is another user's, or others may read it", ": chown and chmod 600 it");
    if (read(fd, secret, 32) != 32 || read(fd, &extra, 1) != 0)
        secret_fails(path, "is not 32 bytes long", ": head -c 32 /dev/urandom makes such a file");
    close(fd);
}

/* Creates the cache on a GPU (device 0 and up) or the CPU (-1). Workers on one GPU share one copy of the weights. */
static inline cleave_cache_t *open_cache(cleave_model_t *model, const char *secret_file, long mib, int32_t device)
{
    cleave_cache_config_t config = {.struct_size = sizeof config, .bytes_per_device = (uint64_t)mib << 20,
                                    .flags = CLEAVE_CACHE_SHARE_WEIGHTS};
    cleave_cache_t *cache;
    read_secret(secret_file, config.secret);
    check(cleave_cache_create(model, &device, 1, &config, &cache, &err), "create the cache");
    memset(config.secret, 0, sizeof config.secret);
    return cache;
}

/* Returns the number in an option's value, or -1. */
static inline long number(const char *text)
{
    char *end;
    long n = strtol(text, &end, 10);
    return *text != 0 && *end == 0 && n >= 0 && n <= 1000000000 ? n : -1;
}

#endif
