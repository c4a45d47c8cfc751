"""Files that appear whole or not at all: stores, seals, weights, checkpoints, and the reader of image files."""

from ardistill.files.fingerprints import remembered_fingerprint as remembered_fingerprint
from ardistill.files.fingerprints import stored_fingerprint as stored_fingerprint
from ardistill.files.seals import SEAL as SEAL
from ardistill.files.seals import check_seal as check_seal
from ardistill.files.seals import read_json as read_json
from ardistill.files.seals import seal as seal
from ardistill.files.seals import sealed_json as sealed_json
from ardistill.files.store import Store as Store
from ardistill.files.tensor_files import TensorFiles as TensorFiles
from ardistill.files.tensor_files import write_in_turn as write_in_turn
from ardistill.files.weights import load_tensors as load_tensors
from ardistill.files.weights import save_tensors as save_tensors
from ardistill.files.weights import weight_fingerprint as weight_fingerprint
from ardistill.files.whole import check_folder as check_folder
from ardistill.files.whole import check_target as check_target
from ardistill.files.whole import whole_file as whole_file
from ardistill.files.whole import whole_folder as whole_folder
from ardistill.files.whole import write_whole as write_whole
