// Running a generation or a prefill knows no protocol, so that a server of another one begins here: this compiles
// without HTTP. The service, which a protocol reports its requests to, is part of it.
#include "prefill.hpp"
#include "run.hpp"

#ifdef CPPHTTPLIB_HTTPLIB_H
#error "httplib.h is included: run.hpp and prefill.hpp are for every protocol"
#endif
