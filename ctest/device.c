#include "support.h"

int main(void)
{
    cleave_device_info_t info = ZERO;
    int32_t count = cleave_device_count();
    CHECK(count >= 0);
    info.struct_size = sizeof info;
    CHECK_OK(cleave_device_info(CLEAVE_DEVICE_CPU, &info, NULL));
    CHECK_INT(info.ordinal, CLEAVE_DEVICE_CPU);
    CHECK_INT(info.struct_size, sizeof info);
    CHECK(info.total_bytes >= info.free_bytes && info.free_bytes > 0);
    CHECK(info.name[0] != 0 && memchr(info.name, 0, sizeof info.name) != NULL);
    CHECK(strcmp(info.uuid, "CPU") == 0);
    CHECK_STATUS(cleave_device_info(count, &info, NULL), CLEAVE_ERR_NOT_FOUND);
    CHECK_STATUS(cleave_device_info(INT32_MAX, &info, NULL), CLEAVE_ERR_NOT_FOUND);
    CHECK_STATUS(cleave_device_info(-2, &info, NULL), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_STATUS(cleave_device_info(CLEAVE_DEVICE_CPU, NULL, NULL), CLEAVE_ERR_INVALID_ARGUMENT);
    return 0;
}
