/* The library calls this function. It calls the Go function, whose C declaration has no const. */
#include "_cgo_export.h"

void cleave_go_log(uintptr_t user_data, int32_t level, const char *target, const char *message)
{
    cleaveGoLog(user_data, level, (char *)target, (char *)message);
}
