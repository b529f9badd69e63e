-- requeue: puts the kept messages of one subject back, and holds it.
--
-- KEYS[1]  the record of the subject's messages (pull.lua)
-- ARGV[1]  how long they are not to be pulled again, ms
--
-- Returns {hold_until, tag, list, status, tag, list, status, …}; hold_until is in
-- ms, 0 for no hold. The record keeps it, and restored_at (ms).
--   status   'restored'; 'unplaced' (it was in no queue that is known, or the
--            queue's key holds another type now): it stays kept
-- A restored message leaves the record in the same step, so that a second call
-- does not push it again.
local call = redis.call
local fields = call('HGETALL', KEYS[1])
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept, hold, restored = {}, 0, false
for i = 1, #fields, 2 do
  kept[fields[i]] = fields[i + 1]
  if fields[i] == 'hold_until' then
    hold = tonumber(fields[i + 1])
  end
end

local out = { 0 }
for i = 1, #fields, 2 do
  local tag = string.match(fields[i], '^m:(.*)')
  if tag then
    local place = kept['p:' .. tag] or 'T'
    local list = string.sub(place, 2)
    local kind = list ~= '' and call('TYPE', list).ok
    local status = 'unplaced'
    if kind == 'list' or kind == 'none' then
      call(string.sub(place, 1, 1) == 'H' and 'LPUSH' or 'RPUSH', list, fields[i + 1])
      call('HDEL', KEYS[1], 'm:' .. tag, 'p:' .. tag)
      status, restored = 'restored', true
    end
    local n = #out
    out[n + 1], out[n + 2], out[n + 3] = tag, list, status
  end
end

if restored and hold <= now then
  hold = now + tonumber(ARGV[1])
  local left = call('PTTL', KEYS[1]) -- -2: the last field was taken out
  call('HSET', KEYS[1], 'hold_until', string.format('%.0f', hold), 'restored_at', string.format('%.0f', now))
  if left < tonumber(ARGV[1]) then
    call('PEXPIRE', KEYS[1], ARGV[1])
  end
end
if hold > now then
  out[1] = hold
end
return out
