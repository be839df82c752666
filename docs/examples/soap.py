"""heavyball's SOAP (Vyas et al. 2024, arXiv:2409.11321), not compiled: that takes minutes on a processor."""

import heavyball.utils

heavyball.utils.compile_mode = None
SOAP = heavyball.SOAP
