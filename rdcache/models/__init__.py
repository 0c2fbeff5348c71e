"""Teachers and students: a name in, a torch module with declared taps or features out.

Weights are read safely or not at all; nothing is unpickled.
"""

from rdcache.models.cards import TeacherCard, corpus_overlap
from rdcache.models.catalogue import list_teachers, load_teacher
from rdcache.models.devices import choose_device
from rdcache.models.preprocessing import Preprocessing
from rdcache.models.slices import for_volumes
from rdcache.models.student import Student, StudentCard, StudentOutput
from rdcache.models.student_export import export_onnx
from rdcache.models.student_files import load_student, save_student
from rdcache.models.students import create_student, list_students, require_fit
from rdcache.models.teacher import Teacher, WeightsInfo
from rdcache.models.volume_preprocessing import VolumePreprocessing

__all__ = [
    "Preprocessing",
    "Student",
    "StudentCard",
    "StudentOutput",
    "Teacher",
    "TeacherCard",
    "VolumePreprocessing",
    "WeightsInfo",
    "choose_device",
    "corpus_overlap",
    "create_student",
    "export_onnx",
    "for_volumes",
    "list_students",
    "list_teachers",
    "load_student",
    "load_teacher",
    "require_fit",
    "save_student",
]
