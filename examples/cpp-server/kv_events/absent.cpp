// Takes the place of the publisher in builds without ZeroMQ.
#include "publish.hpp"

#include <stdexcept>

KvEventSource publish_kv_events(const cleave::Cache &, const std::string &, const std::string &, SaltText)
{
    throw std::runtime_error("--kv-events: this program was built without ZeroMQ (Debian: libzmq3-dev, cppzmq-dev; "
                             "tools/setup.sh --all installs what is missing)");
}
