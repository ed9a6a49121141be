#include "support.h"

int main(void)
{
    unsigned major = 99, minor = 99;
    CHECK_INT(cleave_api_version(), (CLEAVE_API_MAJOR << 16) | CLEAVE_API_MINOR);
    CHECK_INT(sscanf(cleave_version_string(), "%u.%u", &major, &minor), 2);
    CHECK_INT(major, CLEAVE_API_MAJOR);
    CHECK(cleave_version_string() == cleave_version_string());
    return 0;
}
