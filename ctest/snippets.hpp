// What stands around the C++ of the documents, as snippets.h does for C.
#include <cleave/cleave.hpp>
#include <cstdio>
#include <string>
#include <vector>
