"""placeholder"""
import os, sys, time
from pathlib import Path
os.environ.setdefault("OMP_NUM_THREADS","1")
import torch
torch.set_num_threads(1)
from health_cases import cases, train, save
folder=Path(sys.argv[1]); folder.mkdir(exist_ok=True, parents=True)
pick=sys.argv[2] if len(sys.argv)>2 else ""
limit=float(sys.argv[3]) if len(sys.argv)>3 else 1e9
for case in cases():
    if pick and pick not in case.name: continue
    path=folder/(case.name+".npz")
    if path.exists(): continue
    c=time.process_time(); t=time.time()
    try: r=train(case)
    except Exception as e:
        print("FAIL",case.name,repr(e)[:300],flush=True); continue
    save(r,path)
    print(case.name,len(r.layers),len(r.frames),f"cpu {time.process_time()-c:.1f} wall {time.time()-t:.1f} ms/step {1e3*(time.process_time()-c)/case.steps:.1f} target {r.target} onset {r.onset} total {time.process_time():.0f}",flush=True)
    if time.process_time()>limit: break
