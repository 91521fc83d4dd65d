from scanlab_example import backend as example

from scanlab.testing import BackendContract


class TestExample(BackendContract):
    backend = example
