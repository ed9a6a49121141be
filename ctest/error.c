#include "support.h"

int main(void)
{
    cleave_error_t err;
    cleave_model_t *model = NULL;
    char path[600];
    CHECK(sizeof err == 256);
    CHECK(strcmp(cleave_status_string(CLEAVE_OK), "OK") == 0);
    CHECK(strcmp(cleave_status_string(CLEAVE_ERR_INTERNAL), "INTERNAL") == 0);
    CHECK(strcmp(cleave_status_string(-1000), "UNKNOWN") == 0);

    /* A text of any length is cut to fit the 256 bytes, including its NUL. */
    memset(path, 'x', sizeof path);
    path[sizeof path - 1] = 0;
    memset(&err, 'y', sizeof err);
    CHECK(cleave_model_load(path, &model, &err) < 0);
    CHECK(err.code < 0);
    CHECK(memchr(err.message, 0, sizeof err.message) != NULL);
    CHECK(model == NULL);

    /* err may be NULL. A successful call does not change it. */
    CHECK(cleave_model_load(path, &model, NULL) < 0);
    memset(&err, 'y', sizeof err);
    {
        cleave_queue_t *queue = NULL;
        CHECK_OK(cleave_queue_create(8, &queue, &err));
        cleave_queue_destroy(queue);
    }
    CHECK(err.message[0] == 'y' && err.message[251] == 'y');
    return 0;
}
