#include "support.h"
#include <poll.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static cleave_queue_t *waited_on;

struct sleeper {
    long thread; /* the kernel's id, once it is about to wait */
    cleave_status_t status;
};

static void *wait_for_ever(void *argument)
{
    struct sleeper *sleeper = argument;
    cleave_event_t event;
    size_t n = 5;
    __atomic_store_n(&sleeper->thread, syscall(SYS_gettid), __ATOMIC_SEQ_CST);
    sleeper->status = cleave_queue_poll(waited_on, &event, sizeof event, 1, UINT32_MAX, &n);
    CHECK_INT(n, 0);
    return NULL;
}

/* Waits until the thread sleeps: after it has told its id, only the queue makes it do so. */
static void until_asleep(struct sleeper *sleeper)
{
    char path[64], state = 0;
    while (state != 'S') {
        long thread = __atomic_load_n(&sleeper->thread, __ATOMIC_SEQ_CST);
        FILE *file;
        snprintf(path, sizeof path, "/proc/self/task/%ld/stat", thread);
        file = thread == 0 ? NULL : fopen(path, "r");
        CHECK(thread == 0 || file != NULL); /* else it has ended without sleeping */
        if (file != NULL) {
            CHECK_INT(fscanf(file, "%*d (%*[^)]) %c", &state), 1);
            fclose(file);
        }
        usleep(1000);
    }
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

int main(void)
{
    cleave_error_t err;
    cleave_queue_t *queue = NULL;
    cleave_event_t events[4];
    struct pollfd p = ZERO;
    pthread_t waiters[2];
    struct sleeper sleepers[2] = {{0, 1}, {0, 1}};
    size_t n = 9;
    double start;

    CHECK_ERR(cleave_queue_create(1, &queue, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_queue_create(UINT32_MAX, &queue, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_queue_create(0, NULL, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    queue = make_queue(0);

    p.fd = cleave_queue_fd(queue);
    p.events = POLLIN;
    CHECK(p.fd >= 0);
    CHECK_INT(poll(&p, 1, 0), 0);

    /* A timeout is not an error. */
    CHECK_OK(cleave_queue_poll(queue, events, sizeof events[0], 4, 0, &n));
    CHECK_INT(n, 0);
    start = now_ms();
    CHECK_OK(cleave_queue_poll(queue, events, sizeof events[0], 4, 30, &n));
    CHECK(now_ms() - start >= 29);
    CHECK_OK(cleave_queue_poll(queue, NULL, sizeof events[0], 0, UINT32_MAX, &n));

    CHECK_STATUS(cleave_queue_poll(queue, NULL, sizeof events[0], 4, 0, &n), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_STATUS(cleave_queue_poll(queue, events, sizeof events[0], 4, 0, NULL), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_STATUS(cleave_queue_poll(queue, events, 0, 4, 0, &n), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_STATUS(cleave_queue_poll(queue, events, 40, 1, 0, &n), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_STATUS(cleave_queue_poll(queue, events, 65, 1, 0, &n), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_STATUS(cleave_queue_poll(queue, events, SIZE_MAX & ~(size_t)7, 1, 0, &n), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_STATUS(cleave_queue_poll(queue, events, 64, SIZE_MAX, 0, &n), CLEAVE_ERR_INVALID_ARGUMENT);

    /* Destroying a queue wakes its waiting threads. */
    waited_on = queue;
    CHECK_INT(pthread_create(&waiters[0], NULL, wait_for_ever, &sleepers[0]), 0);
    CHECK_INT(pthread_create(&waiters[1], NULL, wait_for_ever, &sleepers[1]), 0);
    until_asleep(&sleepers[0]);
    until_asleep(&sleepers[1]);
    cleave_queue_destroy(queue);
    pthread_join(waiters[0], NULL);
    pthread_join(waiters[1], NULL);
    CHECK_INT(sleepers[0].status, CLEAVE_ERR_SHUTDOWN);
    CHECK_INT(sleepers[1].status, CLEAVE_ERR_SHUTDOWN);
    CHECK_INT(cleave_queue_fd(queue), CLEAVE_ERR_NOT_FOUND);
    cleave_queue_destroy(queue);
    return 0;
}
