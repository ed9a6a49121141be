// A program outside the project that uses the C++ wrapper.
#include <cleave/cleave.hpp>
#include <cstdio>
#include <cstring>

int main(int argc, char **argv)
{
    if (argc != 2 || std::strcmp(argv[1], cleave::version_string()) != 0) {
        std::fprintf(stderr, "the library is version %s\n", cleave::version_string());
        return 1;
    }
    const auto queue = cleave::Queue::create();
    if (!queue || !queue->fd())
        return 2;
    return cleave::Model::load("/no/such/model").status() == cleave::Status::NotFound ? 0 : 3;
}
