/* A program outside the project. It finds the header and the library, and the library works. Compiles as C and as C++. */
#include <cleave/cleave.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    cleave_error_t err;
    cleave_queue_t *queue = NULL;
    cleave_model_t *model = NULL;
    if (argc != 2 || strcmp(argv[1], cleave_version_string()) != 0) {
        fprintf(stderr, "the library is version %s\n", cleave_version_string());
        return 1;
    }
    if (cleave_queue_create(0, &queue, &err) != CLEAVE_OK || cleave_queue_fd(queue) < 0)
        return 2;
    cleave_queue_destroy(queue);
    return cleave_model_load("/no/such/model", &model, &err) == CLEAVE_ERR_NOT_FOUND ? 0 : 3;
}
