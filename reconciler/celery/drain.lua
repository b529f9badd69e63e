-- drain: takes the elements at the tail out of a queue's list, and keeps them.
--
-- KEYS, ARGV[1] to ARGV[9]  see quarantine.lua
-- ARGV[10] at most so many elements
-- ARGV[11] no more once there are so many bytes
-- ARGV[12] our tombstone, which is not kept
--
-- Returns {status, taken, messages}: status 'stale' or 'paused' (nothing was
-- touched), else 'drained'. taken of the list, messages without tombstones; 0 if
-- the list is empty, or no list.
--
-- Costs: about 1 ms for 256 KiB. It reads on by at most twice as many elements, so
-- that large ones behind small ones do not make it a long call.
local status = refusal()
if status then
  return { status, 0, 0 }
end
local place = KEYS[2]
if call('TYPE', place).ok ~= 'list' then
  return { 'drained', 0, 0 }
end
local most, room = tonumber(ARGV[10]), tonumber(ARGV[11])
local taken, bytes, step, elements = 0, 0, 8, {}
while taken < most and bytes < room do
  step = math.min(step, most - taken)
  local part = call('LRANGE', place, -taken - step, -taken - 1)
  for i = #part, 1, -1 do
    bytes = bytes + #part[i]
    if part[i] ~= ARGV[12] then
      elements[#elements + 1] = part[i]
    end
  end
  taken = taken + #part
  if #part < step then
    break
  end
  step = math.max(1, math.min(2 * step, math.floor((room - bytes) * taken / bytes)))
end
keep(elements)
call('LTRIM', place, 0, -taken - 1)
return { 'drained', taken, #elements }
