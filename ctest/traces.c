/* Creating and destroying objects leaves no threads, descriptors or signal handlers behind. The library's threads take
 * no signals, and the host's signal mask does not change. */
#include "support.h"
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

static int entries(const char *directory)
{
    DIR *dir = opendir(directory);
    int count = 0;
    CHECK(dir != NULL);
    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    return count;
}

/* Signals that the host may handle. */
static const uint64_t must_be_blocked = (1ull << (SIGINT - 1)) | (1ull << (SIGTERM - 1)) | (1ull << (SIGUSR1 - 1)) |
                                        (1ull << (SIGALRM - 1)) | (1ull << (SIGCHLD - 1)) | (1ull << (SIGPROF - 1));

static int threads_with_open_signals(int *others)
{
    DIR *dir = opendir("/proc/self/task");
    struct dirent *entry;
    int open_ones = 0;
    *others = 0;
    CHECK(dir != NULL);
    while ((entry = readdir(dir)) != NULL) {
        char path[300], line[256];
        FILE *file;
        if (entry->d_name[0] == '.' || atoi(entry->d_name) == getpid())
            continue;
        snprintf(path, sizeof path, "/proc/self/task/%s/status", entry->d_name);
        file = fopen(path, "r");
        if (file == NULL)
            continue;
        (*others)++;
        while (fgets(line, sizeof line, file) != NULL)
            if (strncmp(line, "SigBlk:", 7) == 0)
                open_ones += (strtoull(line + 7, NULL, 16) & must_be_blocked) != must_be_blocked;
        fclose(file);
    }
    closedir(dir);
    return open_ones;
}

static void wait_for(const char *directory, int wanted)
{
    int i;
    for (i = 0; i < 6000 && entries(directory) > wanted; i++)
        usleep(10000); /* the kernel lists a joined thread for a moment longer */
    CHECK_INT(entries(directory), wanted);
}

int main(void)
{
    struct sigaction before[32], after;
    sigset_t mask_before = ZERO, mask_after = ZERO;
    cleave_model_t *model;
    cleave_cache_t *cache;
    cleave_queue_t *queue;
    cleave_engine_t *engine;
    int i, others, threads, fds;
    for (i = 1; i < 32; i++)
        sigaction(i, NULL, &before[i]);
    pthread_sigmask(SIG_SETMASK, NULL, &mask_before);

    model = load_model();
    cache = make_cache(model);
    queue = make_queue(16);
    engine = make_engine(cache, queue, CLEAVE_ROLE_MIXED);
    CHECK_INT(threads_with_open_signals(&others), 0);
    CHECK(others > 0);
    cleave_engine_destroy(engine);
    threads = entries("/proc/self/task");
    fds = entries("/proc/self/fd");
    for (i = 0; i < 100; i++) {
        cleave_cache_t *c = make_cache(model);
        cleave_queue_t *q = make_queue(16);
        cleave_engine_t *e = make_engine(c, q, (uint32_t)(i % 3));
        cleave_request_desc_t desc = greedy(4, 2);
        int32_t tokens[4];
        fill_prompt(tokens, 4, vocab_size(model), 1);
        submit_one(e, &desc, tokens, 4);
        if (i % 2) { /* either order */
            cleave_engine_destroy(e);
            cleave_cache_destroy(c);
            cleave_queue_destroy(q);
        } else {
            cleave_queue_destroy(q);
            cleave_cache_destroy(c);
            cleave_engine_destroy(e);
        }
    }
    wait_for("/proc/self/task", threads);
    wait_for("/proc/self/fd", fds);
    cleave_cache_destroy(cache);
    cleave_queue_destroy(queue);
    cleave_model_release(model);
    wait_for("/proc/self/task", 3); /* ".", ".." and this one */

    for (i = 1; i < 32; i++) {
        sigaction(i, NULL, &after);
        CHECK(after.sa_handler == before[i].sa_handler);
    }
    pthread_sigmask(SIG_SETMASK, NULL, &mask_after);
    CHECK(memcmp(&mask_before, &mask_after, sizeof mask_before) == 0);
    return 0;
}
