import subprocess
import sys

SCRIPT = """
import pkgutil, sys
import flsys_ray.device
for module in pkgutil.iter_modules(flsys_ray.device.__path__):
    __import__(f"flsys_ray.device.{module.name}")
heavy = {"ray", "tensorflow", "keras", "fastapi", "starlette", "boto3", "pyarrow", "pandas", "matplotlib"}
print(sorted(heavy & set(sys.modules)))
"""


def test_the_phone_loads_nothing_of_the_cloud():
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
