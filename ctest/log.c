#include "support.h"
#include <pthread.h>
#include <sys/prctl.h>

static pthread_t main_thread;
static int calls, from_main, named_wrong, reentered_status = 1, bad_level, named_model;

static void sink(uintptr_t user_data, int32_t level, const char *target, const char *message)
{
    char name[17] = ZERO;
    CHECK(user_data == 0x1234);
    calls++;
    from_main |= pthread_equal(pthread_self(), main_thread);
    prctl(PR_GET_NAME, name, 0, 0, 0);
    named_wrong |= strcmp(name, "cleave-log") != 0;
    bad_level |= level < CLEAVE_LOG_ERROR || level > CLEAVE_LOG_DEBUG;
    CHECK(target[0] != 0 && strchr(message, '\n') == NULL);
    named_model |= strstr(message, "model-1") != NULL;
    if (reentered_status == 1) {
        reentered_status = 2;
        reentered_status = cleave_log_set(CLEAVE_LOG_OFF, NULL, 0);
        /* Every other function may be called. */
        CHECK(cleave_device_count() >= 0);
    }
}

static void fail_once(const char *path)
{
    cleave_model_t *model;
    CHECK_STATUS(cleave_model_load(path, &model, NULL), CLEAVE_ERR_NOT_FOUND);
}

int main(void)
{
    int before;
    main_thread = pthread_self();
    CHECK_STATUS(cleave_log_set(6, sink, 0), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_STATUS(cleave_log_set(-1, sink, 0), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_OK(cleave_log_set(CLEAVE_LOG_OFF, NULL, 0));

    CHECK_OK(cleave_log_set(CLEAVE_LOG_DEBUG, sink, 0x1234));
    fail_once("/no/such/model-1");
    CHECK_OK(cleave_log_set(CLEAVE_LOG_OFF, NULL, 0)); /* flushes */
    CHECK(calls > 0);
    CHECK(named_model);
    CHECK_INT(from_main, 0);
    CHECK_INT(named_wrong, 0);
    CHECK_INT(bad_level, 0);
    CHECK_INT(reentered_status, CLEAVE_ERR_INVALID_ARGUMENT);

    before = calls;
    fail_once("/no/such/model-2");
    CHECK_INT(calls, before);

    /* The level filters. */
    CHECK_OK(cleave_log_set(CLEAVE_LOG_WARN, sink, 0x1234));
    fail_once("/no/such/model-3");
    CHECK_OK(cleave_log_set(CLEAVE_LOG_OFF, sink, 0x1234));
    CHECK_INT(calls, before);
    return 0;
}
