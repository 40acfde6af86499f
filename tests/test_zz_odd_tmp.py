import json, copy, traceback, collections, sys, time
from pathlib import Path
from tests import synthetic
from pipeline.analysis.results import read_results
from pipeline.errors import UserError
from pipeline.files import digest, sha256
from pipeline.manifest import manifest_path, read_manifest
from pipeline.report.figures import draw
from pipeline.report.render import render
from pipeline.report.terminal import summary, verdict_lines
ODD=[None, "", "../x", "\x1b[31m\n|&", -1, 0, 2, 1e308, -1e308, 2**70, True, [], {}, [None], {"a":1}, 0.5, "baseline", "gsm8k", 3]
def leaves(node, path=()):
    yield path
    if isinstance(node, dict):
        for k,v in node.items(): yield from leaves(v, (*path,k))
    elif isinstance(node, list):
        for i,v in list(enumerate(node))[:2]: yield from leaves(v, (*path,i))
def put(node, path, value):
    node=copy.deepcopy(node)
    if not path: return value
    at=node
    for p in path[:-1]: at=at[p]
    if value is DEL: del at[path[-1]]
    else: at[path[-1]]=value
    return node
DEL=object()
def test_all(tmp_path, monkeypatch):
    few = {name: synthetic.CONDITIONS[name] for name in ("baseline", "vector", "random-s0", "alpha=0.5")}
    benchmarks = {name: synthetic.BENCHMARKS[name] for name in ("gsm8k", "gsm8k@larger_numbers", "bbh")}
    geometry = synthetic.write_geometry(tmp_path / "results")
    families = {"micro": synthetic.family("micro", geometry=str(tmp_path / geometry))}
    manifest = synthetic.write_run(tmp_path/"results", conditions=few, families=families, benchmarks=benchmarks, documents=6)
    path = manifest_path(tmp_path/"results", manifest.experiment)
    cell = tmp_path/"results"/"cells"/manifest.cells[1].key
    files = {"samples": cell/"samples.jsonl", "record": cell/"record.json", "geometry": tmp_path/geometry, "manifest": path}
    sound = {w: f.read_bytes() for w,f in files.items()}
    if "FIG" not in sys.argv: monkeypatch.setattr(draw, "render", lambda results, out: [])
    base=None
    bad=collections.Counter(); silent=collections.Counter(); n=0
    def check(what, where, value, log):
        nonlocal n
        n+=1
        try:
            planned=read_manifest(path); results=read_results(planned, tmp_path/"results")
        except UserError as e:
            if what!="manifest": bad["UserError "+what+str(where)+str(e)[:80]]+=1
            if len(str(e).splitlines())>1: bad["lines"]+=1
            return
        except Exception as e:
            bad[f"READ {what} {where} {value!r:.30} {type(e).__name__} {e!s:.80} {traceback.extract_tb(e.__traceback__)[-1]}"]+=1; return
        try:
            render(results, tmp_path/"out"); text=summary(results); list(verdict_lines(results))
        except Exception as e:
            bad[f"RENDER {what} {where} {value!r:.30} {type(e).__name__} {e!s:.80} {traceback.extract_tb(e.__traceback__)[-1]}"]+=1; return
        if "\x1b" in text: bad[f"ESC {what} {where}"]+=1
        for f in (tmp_path/"out").iterdir():
            if f.suffix in (".md",".csv",".tex") and "\x1b" in f.read_text(): bad[f"ESC {f.name} {what} {where}"]+=1
        return results, text
    ref=check("none",(),None,None)
    assert not bad, bad
    t0=time.time()
    for what in files:
        content=[json.loads(l) for l in sound[what].splitlines()] if what=="samples" else json.loads(sound[what])
        for where in leaves(content):
            if where and where[0]=="sha256" : continue
            if what=="samples" and len(where)==0: pass
            for value in [DEL,*ODD]:
                if value is DEL and not where: continue
                for w,raw in sound.items(): files[w].write_bytes(raw)
                try:
                    new=put(content, where, value)
                    if what=="samples":
                        lines="".join(json.dumps(r)+"\n" for r in (new if isinstance(new,list) else [new])).encode()
                        files[what].write_bytes(lines)
                        c=json.loads(sound["record"]); c["samples"]["sha256"]=sha256(lines); c["samples"]["rows"]=len(new) if isinstance(new,list) else 1
                        c.pop("sha256"); c["sha256"]=digest(c); files["record"].write_text(json.dumps(c))
                    else:
                        c=new
                        if isinstance(c,dict) and what!="geometry": c.pop("sha256",None); c["sha256"]=digest(c)
                        files[what].write_text(json.dumps(c))
                except ValueError: continue
                got=check(what, where, value, None)
                if got and what in("samples","record"):
                    r,text=got
                    if text!=ref[1] and len(r.cells)==len(ref[0].cells):
                        silent[f"{what} {tuple('*' if isinstance(x,int) else x for x in where)}"]+=1
        print(what, n, round(time.time()-t0), len(bad), flush=True)
    for k,v in bad.most_common(100): print("BAD",v,k)
    for k,v in silent.items(): print("CHANGED",v,k)
